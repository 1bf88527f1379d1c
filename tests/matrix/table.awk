# Makes docs/matrix.md from the results (row, moment, outcome, why) and the rows (name, group, call, ...).
BEGIN {
    count = split("before while after freeze hidden", moments, " ")
    print "# Every way to change a file"
    print ""
    print "What comes of a change that the program or another one makes while a session runs, by how it is made and when. This table is"
    print "written by a test (`tests/run matrix`), which makes every change in a source of its own and compares the copy entry by entry;"
    print "it fails if the table says anything else."
    print ""
    print "The moments: *before* the copier reaches the file; *while* it copies it; *after* it has, before the cut; in the *freeze*, while"
    print "captured calls wait at the gate; *under a captured change*: after it has, with captured changes of the same file and directory"
    print "behind it, which move the times that an unseen change is known by."
    print ""
    print "- **captured**: seen when it was made, and in the copy."
    print "- **read**: made before the file was read, and in the copy."
    print "- **waited**: the call waited until the gate opened. It is behind the cut."
    print "- **detected**: not seen when it was made, but found out: by the times, or because the file was known as one that others"
    print "  write, which the report warns of. The file was copied again, and the copy is right."
    print "- **refused**: the session failed, and its error says what it could not follow."
    print "- **not found**: the copy is *not* right, and nobody is told. [limits.md](limits.md) says when that can be."
    print "- –: has no meaning, or is not to be had on the kernel that this was written on; in the freeze also: what waited, or came when the"
    print "  gate was open again, of a file that is copied whole anyway."
}
FILENAME ~ /results$/ {
    outcome[$1, $2] = $3
    next
}
{
    if ($2 != group) {
        group = $2
        printf "\n## %s\n\n", group
        print "| change | before | while | after | freeze | under a captured change |"
        print "|---|---|---|---|---|---|"
    }
    line = "| " $3
    for (i = 1; i <= count; i++) line = line " | " word(outcome[$1, moments[i]], moments[i], outcome[$1, "after"])
    print line " |"
}
# What is not captured is found untouched by luck as well, if it comes just before its file is read.
function word(of, moment, after) {
    if (of == "" || of == "unavailable") return "–"
    if (of == "WRONG") return "**not found**"
    if (of == "captured" && moment == "before") return "read"
    if (of == "captured" && after != "") return after
    return of
}
