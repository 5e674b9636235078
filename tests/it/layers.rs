//! Each layer uses only those below it (`docs/ARCHITECTURE.md`, "Layers").

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the bottom up; those of one line do not use one another, but for the pairs in `ALLOWED`.
const LAYERS: &[&[&str]] = &[
    &["error", "limits"],
    &["buffer", "hash", "path", "xattrs"],
    &["protocol"],
    &["transfer"],
    &["net", "tls", "storage", "confine"],
    &["access", "audit"],
    &["client", "server"],
    &["cli", "main"],
];

/// `error` says which exit code a limit has, and every layer reads both; `path` bounds names by `limits`.
const ALLOWED: &[(&str, &str)] = &[("error", "limits"), ("limits", "error"), ("path", "hash"), ("xattrs", "path")];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("module `{module}` is in no layer: add it to docs/ARCHITECTURE.md and here"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the sources are readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_layer_uses_only_those_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&root).expect("below src");
        let first = relative.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let text = fs::read_to_string(file).expect("a source file");
        // Unit tests may reach further.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        if relative.iter().any(|part| part == "tests.rs") {
            continue;
        }
        for part in text.split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if used == module || used.is_empty() || used.starts_with(char::is_uppercase) {
                continue;
            }
            let (from, to) = (layer(&module), layer(&used));
            if to >= from && !ALLOWED.contains(&(module.as_str(), used.as_str())) {
                wrong.push(format!("{}: {module} uses {used}", relative.display()));
            }
        }
    }
    assert!(files.len() > 20, "the sources were not found");
    assert!(wrong.is_empty(), "layers used upwards or sideways:\n{}", wrong.join("\n"));
}
