// A plugin that does nothing but declare two variables, under whatever name: what cannot be had to test with (TokuDB, a key
// ring) looks like this to whoever reads its variables.
//
// Needs NAME, FIRST, FIRST_VALUE, SECOND, SECOND_VALUE as texts, VERSION as the server's (90704), and MARIADB or not.

static int interface_version = VERSION << 8;

static int begin(void *plugin) { return plugin == 0; }
static int end(void *plugin) { return plugin == 0; }

// A text of the server that cannot be set and is no option.
struct variable {
    int flags;
    const char *name, *comment;
    void *check, *update;
    const char **value, *standard;
};
static const char *first_value = FIRST_VALUE, *second_value = SECOND_VALUE;
static struct variable first = {0x205 | 0x800, FIRST, "", 0, 0, &first_value, FIRST_VALUE};
static struct variable second = {0x205 | 0x800, SECOND, "", 0, 0, &second_value, SECOND_VALUE};
static struct variable *variables[] = {&first, &second, 0};

#define BEGINNING (void *)3, &interface_version, NAME, "The hotbackup authors", "Declares variables", (void *)2, (void *)begin
#define MIDDLE (void *)end, (void *)1, 0, variables

#ifdef MARIADB
int _maria_plugin_interface_version_ = 0x010d;
int _maria_sizeof_struct_st_plugin_ = 13 * sizeof(void *);
const void *_maria_plugin_declarations_[26] = {BEGINNING, MIDDLE, "1", (void *)6};
#elif VERSION < 80000
int _mysql_plugin_interface_version_ = 0x0104;
int _mysql_sizeof_struct_st_plugin_ = 13 * sizeof(void *);
const void *_mysql_plugin_declarations_[26] = {BEGINNING, MIDDLE, 0, 0};
#else
int _mysql_plugin_interface_version_ = 0x010b;
int _mysql_sizeof_struct_st_plugin_ = 14 * sizeof(void *);
const void *_mysql_plugin_declarations_[28] = {BEGINNING, 0, MIDDLE, 0, 0};
#endif
