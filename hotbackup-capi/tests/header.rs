//! The header in the repository is what the sources say.
//!
//! Method: generate it with cbindgen and compare. `HOTBACKUP_WRITE_HEADER=1 cargo test -p hotbackup-capi --test header`
//! writes it anew.

use std::path::Path;

/// The header, without what only Rust readers need.
fn generate(package: &Path) -> String {
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml")).expect("cbindgen.toml");
    let bindings = cbindgen::Builder::new()
        .with_crate(package)
        .with_config(config)
        .generate()
        .expect("the sources parse");
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).expect("UTF-8");
    let mut lines: Vec<&str> = Vec::new();
    let mut in_safety = false;
    for line in text.lines() {
        in_safety = (in_safety && line.starts_with("//")) || line == "// # Safety";
        if in_safety {
            continue;
        }
        // The blank comment line before a section that was left out goes too.
        if !line.starts_with("//") && lines.last() == Some(&"//") {
            lines.pop();
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_header_is_up_to_date() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = package.join("../include/hotbackup.h");
    let header = generate(package);
    if std::env::var_os("HOTBACKUP_WRITE_HEADER").is_some() {
        std::fs::write(&place, &header).expect("write the header");
    }
    let committed = std::fs::read_to_string(&place).unwrap_or_default();
    let differs = header.lines().zip(committed.lines()).position(|(new, old)| new != old);
    assert!(
        header == committed,
        "include/hotbackup.h differs from the sources, first at line {differs:?}; write it anew with \
         HOTBACKUP_WRITE_HEADER=1 cargo test -p hotbackup-capi --test header"
    );
}
