/* Objects that bypass the hooks are found and named: a session is refused rather than silently wrong.
 *
 *   deep SOURCE DESTINATION PLUGIN       the plugin calls write and unlink of the C library */
#include "common.h"

static hotbackup_status begin(const char *source, const char *destination) {
    hotbackup_pair pair = {source, destination};
    hotbackup_options options = options_of(&pair);
    hotbackup_session *session = NULL;
    hotbackup_status status = API(hotbackup_start)(&options, &session);
    if (status == HOTBACKUP_STATUS_OK) API(hotbackup_free)(session);
    return status;
}

static void refused(const char *source, const char *destination, const char *plugin) {
    CHECK(begin(source, destination) == HOTBACKUP_STATUS_HOOK_NOT_LIVE);
    CHECK(strstr(API(hotbackup_last_error)(), plugin));
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    void *plugin = dlopen(argv[3], RTLD_LAZY | RTLD_LOCAL);
    CHECK(plugin && begin(argv[1], argv[2]) == HOTBACKUP_STATUS_OK);
    CHECK(dlclose(plugin) == 0);
    plugin = dlopen(argv[3], RTLD_NOW | RTLD_DEEPBIND);
    CHECK(plugin);
    refused(argv[1], argv[2], "plugin");
    CHECK(dlclose(plugin) == 0);
    plugin = dlopen(argv[3], RTLD_LAZY | RTLD_DEEPBIND);
    CHECK(plugin);
    refused(argv[1], argv[2], "plugin");
    CHECK(dlclose(plugin) == 0);
    plugin = dlmopen(LM_ID_NEWLM, argv[3], RTLD_NOW);
    CHECK(plugin);
    refused(argv[1], argv[2], "plugin");
    return 0;
}
