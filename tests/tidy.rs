//! The plan of the house as a test: who may import whom, what every room has, and what is written nowhere.
//!
//! STYLE and `ARCHITECTURE.md` say it in words; here it fails. Each test lists everything that it finds, since
//! somebody who moved a room wants to see all of it at once. The files looked at are those that git knows or would add.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

/// Which of our crates each crate may import, in the order data flows.
///
/// A new line here is a change of the design: it comes with its edit of `ARCHITECTURE.md`.
const PLAN: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("delta", &[]),
    ("link", &["protocol"]),
    ("telemetry", &["protocol"]),
    ("logs", &["protocol", "telemetry"]),
    ("storage", &["protocol", "telemetry"]),
    ("client", &["protocol", "link", "delta", "telemetry"]),
    ("session-core", &["protocol"]),
    ("session", &["session-core", "protocol", "link", "logs", "telemetry"]),
    ("master-core", &["protocol"]),
    ("sim", &["master-core", "protocol"]),
    ("master", &["master-core", "protocol", "link", "storage", "logs", "telemetry"]),
    ("game-derive", &[]),
    ("game-core", &["game-derive", "protocol", "delta"]),
    ("game", &["game-core", "protocol", "link", "storage", "logs", "telemetry"]),
    ("games", &["game-core"]),
    ("console", &["protocol", "logs", "telemetry"]),
    (
        "bench",
        &["client", "protocol", "link", "delta", "game-core", "master-core", "storage", "logs"],
    ),
    ("couchbase-node", &[]),
    ("xtask", &[]),
    (
        ROOT,
        &[
            "protocol",
            "delta",
            "link",
            "telemetry",
            "logs",
            "storage",
            "client",
            "session-core",
            "session",
            "master-core",
            "master",
            "game-core",
            "game",
            "games",
            "console",
        ],
    ),
];

/// The root package, which is the front door.
const ROOT: &str = "greenroom";

/// Crates without tasks, clocks, sockets and randomness of their own. Their names stand in `PLAN` too.
const CORES: &[&str] =
    &["protocol", "delta", "session-core", "master-core", "game-derive", "game-core"];

/// What a core must not reach, not even through somebody else's crate.
const NOT_IN_A_CORE: &[&str] =
    &["async-std", "mio", "polling", "smol", "socket2", "tokio", "tokio-util"];

/// What a core must not name among its own dependencies.
const NOT_NAMED_BY_A_CORE: &[&str] = &[
    "async-channel",
    "async-trait",
    "axum",
    "chrono",
    "futures",
    "futures-util",
    "getrandom",
    "hyper",
    "time",
];

/// What the `clippy.toml` of each core bans.
const BANNED_IN_CORES: &[&str] = &[
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "std::thread::spawn",
    "std::net::TcpStream",
    "std::fs::File",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

/// The lines with which each `lib.rs` says what the room is.
const FURNITURE: &[&str] = &["*Takes*", "*Gives*", "*Owns*", "*Never*"];

/// Columns of a line of Rust. rustfmt keeps code to 100; what it leaves alone (comments, strings) ends here.
const COLUMNS_MAX: usize = 120;

/// Words of others for things that have a word here, each with ours. In code and comments, whole words only.
const SYNONYMS: &[(&str, &str)] = &[
    ("leader", "active"),
    ("leaders", "actives"),
    ("primary", "active"),
    ("follower", "standby"),
    ("followers", "standbys"),
    ("replica", "standby (for the master), or the type `Replica`"),
    ("replicas", "standbys (for the master), or the type `Replica`"),
];

/// Where a synonym is the right word after all: SQL's and clippy's own language, and the folder of the type `Replica`.
const SYNONYM_EXCEPTIONS: &[&str] =
    &["primary key", "primary index", "mod replica;", "core::replica::", "core::replica as"];

/// Where another's words are names on a wire: Couchbase says `numReplicas` and `CREATE PRIMARY INDEX`.
const SPEAKS_OF_OTHERS: &[&str] = &["tests/couchbase-node/", "storage/src/backend/couchbase"];

#[test]
fn the_plan_names_every_crate_and_no_other() {
    let planned: BTreeSet<String> = PLAN.iter().map(|(name, _)| (*name).to_owned()).collect();
    let there: BTreeSet<String> = crates().into_keys().collect();
    let mut findings = Vec::new();
    findings.extend(
        there
            .difference(&planned)
            .map(|name| format!("`{name}` is a crate that PLAN does not name")),
    );
    findings.extend(
        planned.difference(&there).map(|name| format!("PLAN names `{name}`, which is no crate")),
    );
    nothing(findings);
}

#[test]
fn every_crate_imports_only_what_the_plan_allows() {
    let mut findings = Vec::new();
    for (name, manifest) in crates() {
        let allowed = allowed(&name);
        for import in our_imports(&manifest, &["dependencies", "build-dependencies"]) {
            if !allowed.contains(&import.as_str()) {
                findings.push(format!("`{name}` imports `{import}`, which PLAN does not allow"));
            }
        }
    }
    nothing(findings);
}

#[test]
fn a_core_is_tested_without_shells() {
    let mut findings = Vec::new();
    for (name, manifest) in crates().into_iter().filter(|(name, _)| is_core(name)) {
        for import in our_imports(&manifest, &["dev-dependencies"]) {
            if !is_core(&import) {
                findings.push(format!("the tests of `{name}` import `{import}`, which is no core"));
            }
        }
    }
    nothing(findings);
}

#[test]
fn the_plan_runs_downward_only() {
    let mut findings = Vec::new();
    for (place, (name, imports)) in PLAN.iter().enumerate() {
        let above: Vec<&str> = PLAN[..place].iter().map(|(name, _)| *name).collect();
        for import in imports.iter().filter(|import| !above.contains(import)) {
            findings.push(format!("PLAN lets `{name}` import `{import}`, which stands below it"));
        }
        for import in imports.iter().filter(|import| is_core(name) && !is_core(import)) {
            findings
                .push(format!("PLAN lets the core `{name}` import `{import}`, which is no core"));
        }
    }
    nothing(findings);
}

#[test]
fn no_core_reaches_a_runtime_or_a_socket() {
    let lock = parse("Cargo.lock");
    let edges = lock_edges(&lock);
    let mut findings = Vec::new();
    for (name, manifest) in crates().into_iter().filter(|(name, _)| is_core(name)) {
        let own: Vec<String> = imports(&manifest, &["dependencies", "build-dependencies"]);
        findings.extend(
            (own.iter().filter(|import| NOT_NAMED_BY_A_CORE.contains(&import.as_str())))
                .map(|import| format!("the core `{name}` imports `{import}`")),
        );
        // Development dependencies may be wider, but what runs tasks is out of the question there too.
        let tested_with = imports(&manifest, &["dev-dependencies"]);
        findings.extend(
            (tested_with.iter().filter(|import| NOT_IN_A_CORE.contains(&import.as_str())))
                .map(|import| format!("the tests of the core `{name}` import `{import}`")),
        );
        let (mut reached, mut next) = (BTreeSet::new(), own);
        while let Some(import) = next.pop() {
            if reached.insert(import.clone()) {
                next.extend(edges.get(&import).into_iter().flatten().cloned());
            }
        }
        findings.extend(
            (NOT_IN_A_CORE.iter().filter(|banned| reached.contains(**banned)))
                .map(|banned| format!("the core `{name}` reaches `{banned}`")),
        );
    }
    nothing(findings);
}

#[test]
fn every_core_bans_clocks_sockets_and_random_order() {
    let mut findings = Vec::new();
    for (name, manifest) in crates().into_iter().filter(|(name, _)| is_core(name)) {
        let path = manifest.folder.join("clippy.toml");
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            findings.push(format!("the core `{name}` has no {}", path.display()));
            continue;
        };
        for banned in
            BANNED_IN_CORES.iter().filter(|banned| !text.contains(&format!("\"{banned}\"")))
        {
            findings.push(format!("{} does not ban {banned}", path.display()));
        }
    }
    nothing(findings);
}

#[test]
fn every_crate_has_the_lints_of_the_workspace() {
    let lints = Some(&Value::Boolean(true));
    let without = crates().into_iter().filter(|(_, manifest)| {
        manifest
            .table
            .get("lints")
            .and_then(Value::as_table)
            .and_then(|table| table.get("workspace"))
            != lints
    });
    nothing(without.map(|(name, _)| format!("`{name}` has no `[lints] workspace = true`")));
}

#[test]
fn every_library_opens_with_what_it_takes_gives_owns_and_never_does() {
    let mut findings = Vec::new();
    for (name, manifest) in crates() {
        let path = manifest.folder.join("src/lib.rs");
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        let opening: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        if opening.first().is_none_or(|line| line.len() < "//! A sentence.".len()) {
            findings.push(format!("{} does not open with a paragraph in `//!`", path.display()));
            continue;
        }
        for piece in
            FURNITURE.iter().filter(|piece| !opening.iter().any(|line| line.contains(**piece)))
        {
            findings.push(format!("{} of `{name}` does not say {piece}", path.display()));
        }
    }
    nothing(findings);
}

#[test]
fn every_ignored_test_says_why() {
    // Put together here, so that this file does not find itself.
    let bare = concat!("#[", "ignore]");
    nothing(lines_where(is_rust, |line| {
        line.contains(bare).then(|| "a test is left out without a reason".to_owned())
    }));
}

#[test]
fn nothing_is_left_for_later() {
    let leftovers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let phrases = [concat!("for ", "now"), concat!("place", "holder")];
    nothing(lines_where(is_source, |line| {
        let word = leftovers.iter().find(|leftover| words(line).any(|word| word == **leftover));
        let lower = line.to_lowercase();
        // The SQL parser calls a parameter by the second phrase, in its own names.
        let lower = lower.replace(concat!("::place", "holder("), "");
        let lower = lower.replace(concat!("dollar_place", "holder("), "");
        let phrase = phrases.iter().find(|phrase| lower.contains(**phrase));
        word.or(phrase).map(|found| format!("{found:?} is work left over"))
    }));
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    nothing(lines_where(
        |_| true,
        |line| {
            let found = places.iter().find(|place| {
                line.match_indices(**place).any(|(at, _)| {
                    // `a/home/b` is a path of ours; only one that starts here is the machine's.
                    !line[..at].ends_with(|before: char| {
                        before.is_alphanumeric() || "._-}".contains(before)
                    })
                })
            });
            found.map(|place| format!("{place:?} is a path of one machine"))
        },
    ));
}

#[test]
fn locks_and_settings_name_no_registry_but_the_public_ones() {
    let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
    let mut findings = Vec::new();
    for path in files() {
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let text = read(&path);
        let is_bad: fn(&str, &str) -> bool = match name.as_str() {
            "Cargo.lock" => |line, public| line.starts_with("source = ") && !line.contains(public),
            "package-lock.json" => |line, _| line.contains("\"resolved\": \"http"),
            ".npmrc" => |line, _| line.contains("registry=") || line.contains("_auth"),
            "config.toml" | "Cargo.toml" => |line, _| {
                ["[registries", "[source.", "replace-with", "registry ="]
                    .iter()
                    .any(|word| line.starts_with(word))
            },
            _ => continue,
        };
        findings.extend(
            (text.lines().enumerate().filter(|(_, line)| is_bad(line.trim_start(), crates_io)))
                .map(|(number, line)| {
                    format!("{}:{}: {}", path.display(), number + 1, line.trim())
                }),
        );
    }
    nothing(findings);
}

#[test]
fn one_word_has_one_meaning() {
    nothing(lines_where(
        |path| {
            let name = path.display().to_string();
            let is_ours = !SPEAKS_OF_OTHERS.iter().any(|place| name.starts_with(place));
            is_rust(path) && is_ours && path != Path::new("tests/tidy.rs")
        },
        |line| {
            let lower = line.to_lowercase();
            if SYNONYM_EXCEPTIONS.iter().any(|exception| lower.contains(exception)) {
                return None;
            }
            words(line).find_map(|word| {
                let (_, ours) =
                    SYNONYMS.iter().find(|(theirs, _)| word.eq_ignore_ascii_case(theirs))?;
                (word != "Replica").then(|| format!("{word:?} is called {ours} here"))
            })
        },
    ));
}

#[test]
fn lines_of_rust_fit_the_page() {
    nothing(lines_where(is_rust, |line| {
        let columns = line.chars().count();
        (columns > COLUMNS_MAX).then(|| format!("{columns} columns"))
    }));
}

#[test]
fn the_architecture_names_every_top_level_folder() {
    let text = read(Path::new("ARCHITECTURE.md"));
    let folders: BTreeSet<String> = (files().iter())
        .filter(|path| path.components().count() > 1)
        .filter_map(|path| {
            Some(path.components().next()?.as_os_str().to_string_lossy().into_owned())
        })
        .filter(|folder| !folder.starts_with('.'))
        .collect();
    let missing = folders.iter().filter(|folder| !text.contains(&format!("`{folder}/")));
    nothing(missing.map(|folder| format!("ARCHITECTURE.md does not name `{folder}/`")));
}

#[test]
fn the_specification_names_every_arrow() {
    let text = read(Path::new("PROTOCOL.md"));
    let wire = Path::new("protocol/src/wire");
    let mut findings = Vec::new();
    let mut seen = 0;
    for path in files().iter().filter(|path| path.parent() == Some(wire)) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        seen += 1;
        if name != "mod.rs" && !text.contains(&name) {
            findings.push(format!("PROTOCOL.md does not name `{name}`"));
        }
    }
    assert!(seen > 0, "there is nothing in {}", wire.display());
    nothing(findings);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let known: BTreeSet<PathBuf> = files().into_iter().collect();
    let mut findings = Vec::new();
    for path in known.iter().filter(|path| has_extension(path, "md")) {
        let text = read(path);
        for (number, target) in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = path.parent().unwrap_or(Path::new(""));
            let led_to =
                if file.is_empty() { Some(path.clone()) } else { tidied(&folder.join(file)) };
            let place = format!("{}:{number}", path.display());
            match led_to {
                Some(led_to) if known.contains(&led_to) => {
                    if has_extension(&led_to, "md")
                        && !anchor.is_empty()
                        && !anchors(&read(&led_to)).contains(anchor)
                    {
                        findings.push(format!(
                            "{place}: {} has no heading for #{anchor}",
                            led_to.display()
                        ));
                    }
                }
                Some(led_to) if known.iter().any(|path| path.starts_with(&led_to)) => {}
                _ => findings.push(format!("{place}: {file} is not there")),
            }
        }
    }
    nothing(findings);
}

#[test]
fn every_fuzz_target_is_a_file_and_a_binary() {
    let manifest = parse("fuzz/Cargo.toml");
    let binaries = manifest.get("bin").and_then(Value::as_array).into_iter().flatten();
    let declared: BTreeSet<String> = (binaries.filter_map(|binary| binary.get("name")?.as_str()))
        .map(|name| format!("fuzz/fuzz_targets/{name}.rs"))
        .collect();
    let there: BTreeSet<String> = (files().iter())
        .filter(|path| path.parent() == Some(Path::new("fuzz/fuzz_targets")) && is_rust(path))
        .map(|path| path.display().to_string())
        .collect();
    let odd = declared.symmetric_difference(&there);
    nothing(odd.map(|path| format!("{path} is only a file, or only a [[bin]] of fuzz/Cargo.toml")));
}

/// One of our crates.
struct Manifest {
    /// Its folder, from the root.
    folder: PathBuf,
    table: Table,
}

/// Every crate of the workspace by the name that `PLAN` has for it.
fn crates() -> BTreeMap<String, Manifest> {
    let workspace = parse("Cargo.toml");
    let members =
        workspace["workspace"]["members"].as_array().expect("the workspace lists its members");
    let folders =
        members.iter().filter_map(Value::as_str).map(PathBuf::from).chain([PathBuf::new()]);
    let manifests = folders.filter_map(|folder| {
        let table = parse(&folder.join("Cargo.toml").display().to_string());
        let name = short(table.get("package")?.get("name")?.as_str()?);
        Some((name, Manifest { folder, table }))
    });
    manifests.collect()
}

/// The name of a crate in `PLAN`: without our prefix.
fn short(name: &str) -> String {
    name.strip_prefix("greenroom-").unwrap_or(name).to_owned()
}

fn allowed(name: &str) -> &'static [&'static str] {
    PLAN.iter().find(|(planned, _)| *planned == name).map_or(&[], |(_, imports)| imports)
}

fn is_core(name: &str) -> bool {
    CORES.contains(&name)
}

/// What the manifest imports in the tables called `kinds`, those for one platform included, by package name.
fn imports(manifest: &Manifest, kinds: &[&str]) -> Vec<String> {
    let platforms =
        manifest.table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = platforms.filter_map(Value::as_table).chain([&manifest.table]);
    let dependencies =
        tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    dependencies
        .flatten()
        .map(|(name, value)| {
            let renamed = value.get("package").and_then(Value::as_str);
            renamed.unwrap_or(name).to_owned()
        })
        .collect()
}

/// Which of our crates it imports, by their names in `PLAN`.
fn our_imports(manifest: &Manifest, kinds: &[&str]) -> Vec<String> {
    let ours = imports(manifest, kinds).into_iter();
    ours.filter(|name| name.starts_with("greenroom") || name == "xtask")
        .map(|name| short(&name))
        .collect()
}

/// For each package of the lock file, those it is built with. Of packages in several versions, all versions together.
fn lock_edges(lock: &Table) -> BTreeMap<String, Vec<String>> {
    let ours = |name: &str| name.starts_with("greenroom");
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock.get("package").and_then(Value::as_array).into_iter().flatten() {
        let Some(name) = package.get("name").and_then(Value::as_str) else { continue };
        let imports = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // An entry is `name` or `name version`. Our own entries hold development dependencies too, so ours are
        // followed by their manifests instead: each core is looked at by itself.
        let imports = imports.filter_map(|import| import.as_str()?.split(' ').next());
        let list = edges.entry(name.to_owned()).or_default();
        if !ours(name) {
            list.extend(imports.map(str::to_owned));
        }
    }
    edges
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that is in git, or that git would add, from the root.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("our file names are text");
    // A file removed from the folder is still listed until the removal is added.
    names
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect()
}

/// The file as text; what is not text (images, recorded bytes) reads as empty.
fn read(path: &Path) -> String {
    let bytes = fs::read(root().join(path))
        .unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    String::from_utf8(bytes).unwrap_or_default()
}

fn parse(path: &str) -> Table {
    read(Path::new(path)).parse().unwrap_or_else(|error| panic!("parsing {path}: {error}"))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|there| there == extension)
}

fn is_rust(path: &Path) -> bool {
    has_extension(path, "rs")
}

/// Code and settings; documents may speak of what is to come.
fn is_source(path: &Path) -> bool {
    ["rs", "toml", "ts", "js", "mjs", "sh", "yml", "yaml"]
        .iter()
        .any(|extension| has_extension(path, extension))
        || path.starts_with(".ci")
}

/// The findings of `check` in the lines of the files that `which` wants, each with its place.
fn lines_where(
    which: impl Fn(&Path) -> bool,
    check: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut findings = Vec::new();
    for path in files().iter().filter(|path| which(path)) {
        for (number, line) in read(path).lines().enumerate() {
            findings.extend(
                check(line).map(|finding| format!("{}:{}: {finding}", path.display(), number + 1)),
            );
        }
    }
    findings
}

/// The words of a line; `snake_case` and `CamelCase` are several.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|char: char| !char.is_ascii_alphanumeric()).flat_map(|run| {
        let bytes = run.as_bytes();
        let starts = (1..bytes.len())
            .filter(|at| bytes[at - 1].is_ascii_lowercase() && bytes[*at].is_ascii_uppercase());
        let cuts: Vec<usize> = std::iter::once(0).chain(starts).chain([run.len()]).collect();
        (1..cuts.len()).map(move |at| &run[cuts[at - 1]..cuts[at]]).collect::<Vec<_>>()
    })
}

/// The targets of a document's links to our own files, with their lines; code blocks and other sites left out.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for after in line.split("](").skip(1) {
            let target = after.split([')', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push((number + 1, target));
            }
        }
    }
    links
}

/// The anchors of a document's headings, made as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let headings = text.lines().filter(|line| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    });
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept =
                heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
            kept.map(|char| if char == ' ' { '-' } else { char }).collect()
        })
        .collect()
}

/// The path without `.` and `..`, or nothing if it leads out of the house.
fn tidied(path: &Path) -> Option<PathBuf> {
    let mut tidied = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => tidied.push(name),
            Component::ParentDir => {
                if !tidied.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(tidied)
}

/// Fails with every finding on a line of its own.
#[track_caller]
fn nothing(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "found:\n{}", findings.join("\n"));
}

#[test]
fn words_are_found_inside_names() {
    let found: Vec<&str> = words("let leader_id = ReplicaSet::new(leaderboard);").collect();
    assert_eq!(
        found,
        ["let", "leader", "id", "", "", "Replica", "Set", "", "new", "leaderboard", "", ""]
    );
}

#[test]
fn anchors_are_made_as_github_makes_them() {
    assert_eq!(anchors("# Run it\n```\n# not this\n```\n## What's `here`?\n").len(), 2);
    assert!(anchors("## What's `here`, 1–2?").contains("whats-here-12"));
}
