//! Where the server keeps the keys of what it encrypts. They are not backed up unless they lie in a source: a backup that holds
//! its own keys would be open to whoever gets hold of it. So somebody has to be told.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::host::Server;
use crate::plugins;
use crate::sources::Sources;

/// Global variables of plugins that name files or directories with keys.
const FILES: [(&CStr, &CStr); 5] = [
    (c"keyring_file", c"keyring_file_data"),
    (c"keyring_encrypted_file", c"keyring_encrypted_file_data"),
    (c"keyring_okv", c"keyring_okv_conf_dir"),
    (c"file_key_management", c"file_key_management_filename"),
    (c"file_key_management", c"file_key_management_filekey"),
];

/// One sentence for each place of keys that is not in the backup.
pub(crate) fn warnings(server: Server, sources: &Sources) -> Vec<String> {
    let data = sources.data();
    let of_plugins = FILES.into_iter().filter_map(|(plugin, variable)| {
        let text = plugins::text(server, plugin, variable).filter(|text| !text.is_empty())?;
        // A key may itself be given, or the file that it is in.
        let text =
            if variable == c"file_key_management_filekey" { text.strip_prefix(b"FILE:")? } else { &text };
        Some((variable.to_string_lossy().into_owned(), data.join(OsStr::from_bytes(text))))
    });
    let of_components = plugins::libraries().into_iter().filter_map(|library| of_component(&library, data));
    let outside = of_plugins
        .chain(of_components)
        .filter(|(_, file)| !sources.cover(&std::fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    let warning = |(name, file): (String, PathBuf)| {
        format!(
            "the keys in {} ({name}) are not in the backup: keep a copy of them, apart from it",
            file.display()
        )
    };
    outside.map(warning).collect()
}

/// The file of a component of MySQL 8 and later that keeps keys, by the file that configures it, beside the component or in the
/// data directory.
fn of_component(library: &Path, data: &Path) -> Option<(String, PathBuf)> {
    let name = library.file_stem()?.to_str().filter(|name| name.starts_with("component_keyring_"))?;
    let read = |directory: &Path| std::fs::read(directory.join(format!("{name}.cnf"))).unwrap_or_default();
    let global = read(library.parent()?);
    let is_local = value(&global, "read_local_config").is_some_and(|value| value.starts_with(b"true"));
    let configuration = if is_local { read(data) } else { global };
    let path = value(&configuration, "path")?.strip_prefix(b"\"")?;
    let path = &path[..path.iter().position(|&b| b == b'"')?];
    Some((name.to_owned(), data.join(OsStr::from_bytes(path))))
}

/// What follows `"key":` in a text of JSON that has no need of escapes.
fn value<'a>(json: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let quoted = format!("\"{key}\"");
    let at = json.windows(quoted.len()).position(|part| part == quoted.as_bytes())?;
    let rest = json[at + quoted.len()..].trim_ascii_start();
    Some(rest.strip_prefix(b":")?.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_component_is_found_by_its_configuration() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (plugins, data) = (scratch.path().join("plugins"), scratch.path().join("data"));
        [&plugins, &data].iter().for_each(|one| std::fs::create_dir(one).expect("a directory"));
        let library = plugins.join("component_keyring_file.so");
        assert_eq!(of_component(&library, &data), None);
        let write = |directory: &Path, text| {
            std::fs::write(directory.join("component_keyring_file.cnf"), text).expect("a file");
        };
        write(&plugins, "{ \"path\" : \"/keys/one\", \"read_only\": false }");
        let found = |path: &str| Some(("component_keyring_file".to_owned(), PathBuf::from(path)));
        assert_eq!(of_component(&library, &data), found("/keys/one"));
        write(&plugins, "{\"read_local_config\":true}");
        assert_eq!(of_component(&library, &data), None);
        write(&data, "{\"path\":\"/keys/two\"}");
        assert_eq!(of_component(&library, &data), found("/keys/two"));
        assert_eq!(of_component(&plugins.join("ha_rocksdb.so"), &data), None);
    }
}
