//! Programs of others that the tests need and the toolchains don't bring: looked for, installed when missing.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, bail};

use crate::child;
use crate::workspace::Workspace;

/// One row of the table.
#[derive(Debug)]
struct Tool {
    name: &'static str,
    source: Source,
    /// What needs it, for the message when it is missing.
    needed_for: &'static str,
    /// The variable that tells the tests where it is.
    variable: Option<&'static str>,
}

/// Where a tool comes from.
#[derive(Debug)]
enum Source {
    /// On a machine with the toolchains; only looked for.
    Toolchain,
    /// A Debian package that brings a program called as the tool is.
    Debian { package: &'static str },
    /// A package from the npm registry, called as the tool is.
    Npm { version: &'static str },
    /// An OpenTelemetry collector that its own builder puts together from these modules, of the Go module proxy.
    Collector { version: &'static str, modules: &'static [(&'static str, &'static str)] },
    /// A package from PyPI that brings a program called as the tool is, in an environment of its own.
    PyPi { package: &'static str },
    /// A module from PyPI, called as the tool is, in an environment of its own, whose `python` is the tool's place.
    PyPiModule { package: &'static str },
}

/// What the collector of the tests is made of: it takes OTLP, and prints what it took.
const COLLECTOR_MODULES: &[(&str, &str)] = &[
    ("receivers", "receiver/otlpreceiver v0.155.0"),
    ("processors", "processor/batchprocessor v0.155.0"),
    ("exporters", "exporter/debugexporter v0.155.0"),
    ("providers", "confmap/provider/envprovider v1.61.0"),
    ("providers", "confmap/provider/fileprovider v1.61.0"),
    ("providers", "confmap/provider/yamlprovider v1.61.0"),
];

/// Every tool, toolchains first: npm installs need `npm`.
const TOOLS: &[Tool] = &[
    Tool {
        name: "g++",
        source: Source::Toolchain,
        needed_for: "the fuzz targets (libFuzzer is C++)",
        variable: None,
    },
    Tool {
        name: "node",
        source: Source::Toolchain,
        needed_for: "comparing deltas with npm's, and the TypeScript SDK",
        variable: None,
    },
    Tool {
        name: "npm",
        source: Source::Toolchain,
        needed_for: "installing what node runs",
        variable: None,
    },
    Tool {
        name: "go",
        source: Source::Toolchain,
        needed_for: "building the OpenTelemetry collector of the tests",
        variable: None,
    },
    Tool {
        name: "otelcol",
        source: Source::Collector { version: "0.155.0", modules: COLLECTOR_MODULES },
        needed_for: "seeing whether traces and metrics arrive at a real collector",
        variable: Some("GREENROOM_OTELCOL"),
    },
    Tool {
        name: "fossil",
        source: Source::Debian { package: "fossil" },
        needed_for: "comparing deltas with the tool that the format is of",
        variable: Some("GREENROOM_FOSSIL"),
    },
    Tool {
        name: "fossil-delta",
        source: Source::Npm { version: "2.0.0" },
        needed_for: "comparing deltas with npm's",
        variable: Some("GREENROOM_NODE_MODULES"),
    },
    Tool {
        name: "typescript",
        source: Source::Npm { version: "5.9.3" },
        needed_for: "compiling the TypeScript SDK",
        variable: None,
    },
    Tool {
        name: "@types/node",
        source: Source::Npm { version: "20.19.43" },
        needed_for: "compiling the TypeScript SDK",
        variable: None,
    },
    Tool {
        name: "esbuild",
        source: Source::Npm { version: "0.28.2" },
        needed_for: "the bundle of the TypeScript SDK",
        variable: None,
    },
    Tool {
        name: "chromium",
        source: Source::Debian { package: "chromium" },
        needed_for: "playing the games in a browser",
        variable: Some("GREENROOM_CHROMIUM"),
    },
    Tool {
        name: "playwright-core",
        source: Source::Npm { version: "1.56.1" },
        needed_for: "playing the games in a browser",
        variable: None,
    },
    Tool {
        name: "@msgpack/msgpack",
        source: Source::Npm { version: "3.1.3" },
        needed_for: "comparing MessagePack with npm's",
        variable: None,
    },
    Tool {
        name: "python3",
        source: Source::Toolchain,
        needed_for: "installing what comes from PyPI",
        variable: None,
    },
    Tool {
        name: "moto_server",
        source: Source::PyPi { package: "moto[server]==5.2.5" },
        needed_for: "a Kinesis API that events are shipped to",
        variable: Some("GREENROOM_MOTO"),
    },
    Tool {
        name: "prometheus_client",
        source: Source::PyPiModule { package: "prometheus-client==0.26.0" },
        needed_for: "reading metrics as Prometheus's own client does",
        variable: Some("GREENROOM_PROMETHEUS_PYTHON"),
    },
];

/// What the tests get to know of the tools.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// Variables for the tests' environment, with the places of what was found.
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
    /// What is missing and could not be installed, by name.
    pub(crate) missing: Vec<String>,
}

/// Looks for every tool and installs what is missing.
pub(crate) fn install(workspace: &Workspace) -> Tools {
    let mut tools = Tools::default();
    for tool in TOOLS {
        match tool.find_or_install(workspace) {
            Ok(place) => tools.variables.extend(tool.variable.map(|variable| (variable, place))),
            Err(error) => {
                println!("    {}: {error:#}", tool.name);
                tools.missing.push(format!("tool {} (needed for {})", tool.name, tool.needed_for));
            }
        }
    }
    tools
}

/// The collector, built if it is not there.
///
/// # Errors
/// When it can't be built.
pub(crate) fn collector(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let tool = TOOLS.iter().find(|tool| matches!(tool.source, Source::Collector { .. }));
    tool.context("the table has a collector")?.find_or_install(workspace)
}

impl Tool {
    fn find_or_install(&self, workspace: &Workspace) -> anyhow::Result<PathBuf> {
        if let Some(place) = self.find(workspace) {
            return Ok(place);
        }
        match &self.source {
            Source::Toolchain => {
                bail!("not on PATH; it comes with the toolchains that CONTRIBUTING.md lists")
            }
            Source::Debian { package } => install_from_debian(workspace, package)?,
            Source::Npm { version } => install_from_npm(workspace, self.name, version)?,
            Source::Collector { version, modules } => build_collector(workspace, version, modules)?,
            Source::PyPi { package } | Source::PyPiModule { package } => {
                install_from_pypi(workspace, package)?;
            }
        }
        self.find(workspace).context("installed, and yet it is not where it should be")
    }

    /// The program, or for npm the folder of modules that holds the package in the right version.
    fn find(&self, workspace: &Workspace) -> Option<PathBuf> {
        match &self.source {
            Source::Toolchain | Source::Debian { .. } => find_on_path(self.name),
            Source::Collector { version, .. } => {
                let program = collector_folder(workspace, version).join(self.name);
                is_program(&program).then_some(program)
            }
            Source::PyPi { package } => {
                let environment = python_environment(workspace, package);
                Some(environment.join("bin").join(self.name)).filter(|program| is_program(program))
            }
            Source::PyPiModule { package } => {
                let environment = python_environment(workspace, package);
                let libraries = fs::read_dir(environment.join("lib")).ok()?;
                let mut modules =
                    libraries.flatten().map(|python| python.path().join("site-packages"));
                modules.find(|modules| modules.join(self.name).is_dir())?;
                Some(environment.join("bin/python")).filter(|program| is_program(program))
            }
            Source::Npm { version } => {
                let modules = workspace.tools().join("node_modules");
                let manifest =
                    fs::read_to_string(modules.join(self.name).join("package.json")).ok()?;
                manifest.contains(&format!("\"version\": \"{version}\"")).then_some(modules)
            }
        }
    }
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| is_program(candidate))
}

fn is_program(candidate: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(candidate)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn install_from_debian(workspace: &Workspace, package: &str) -> anyhow::Result<()> {
    println!("    installing Debian's package {package}");
    let by_hand =
        || format!("apt-get cannot install it here; by hand: `sudo apt-get install {package}`");
    for words in [&["update"][..], &["install", "--yes", "--no-install-recommends", package]] {
        let mut command = workspace.command("apt-get");
        command.arg("--quiet").args(words).env("DEBIAN_FRONTEND", "noninteractive");
        let ended =
            child::quiet(&format!("apt-get {}", words[0]), command).with_context(by_hand)?;
        if !ended.status.success() {
            bail!("{}\n{}", by_hand(), ended.output.trim_end());
        }
    }
    Ok(())
}

fn install_from_npm(workspace: &Workspace, name: &str, version: &str) -> anyhow::Result<()> {
    println!("    installing {name}@{version} from npm");
    let tools = workspace.tools();
    fs::create_dir_all(&tools).with_context(|| format!("making {}", tools.display()))?;
    let mut command = workspace.command("npm");
    command.current_dir(&tools).args([
        "install",
        "--prefix",
        ".",
        "--omit-lockfile-registry-resolved",
    ]);
    command
        .args(["--no-audit", "--no-fund", "--ignore-scripts", "--save-exact"])
        .arg(format!("{name}@{version}"));
    let ended = child::quiet("npm install", command)?;
    if !ended.status.success() {
        bail!("npm cannot install it\n{}", ended.output.trim_end());
    }
    Ok(())
}

fn collector_folder(workspace: &Workspace, version: &str) -> PathBuf {
    workspace.tools().join(format!("otelcol-{version}"))
}

/// Builds a collector: about 80 seconds of processor time, once for each version.
fn build_collector(
    workspace: &Workspace,
    version: &str,
    modules: &[(&str, &str)],
) -> anyhow::Result<()> {
    const ROOT: &str = "go.opentelemetry.io/collector";
    println!(
        "    building an OpenTelemetry collector {version} from the Go module proxy (minutes, once)"
    );
    let folder = collector_folder(workspace, version);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut recipe = "dist:\n  name: otelcol\n  output_path: .\n".to_owned();
    let mut section = "";
    for &(of, module) in modules {
        if of != section {
            recipe.push_str(&format!("{of}:\n"));
            section = of;
        }
        recipe.push_str(&format!("  - gomod: {ROOT}/{module}\n"));
    }
    let recipe_file = folder.join("builder.yaml");
    fs::write(&recipe_file, recipe)
        .with_context(|| format!("writing {}", recipe_file.display()))?;
    let mut install = workspace.command("go");
    install.env("GOBIN", &folder).args(["install", &format!("{ROOT}/cmd/builder@v{version}")]);
    let mut build = workspace.command(&folder.join("builder").display().to_string());
    build.args(["--config", "builder.yaml"]);
    for (what, mut command) in [("go install", install), ("the collector's builder", build)] {
        command.current_dir(&folder);
        let ended = child::quiet(what, command)?;
        if !ended.status.success() {
            bail!("{what} failed\n{}", ended.output.trim_end());
        }
    }
    Ok(())
}

/// An environment for each package and version, so that another version is another folder.
fn python_environment(workspace: &Workspace, package: &str) -> PathBuf {
    let name: String = package
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' })
        .collect();
    workspace.tools().join(format!("python-{name}"))
}

fn install_from_pypi(workspace: &Workspace, package: &str) -> anyhow::Result<()> {
    println!("    installing {package} from PyPI");
    let environment = python_environment(workspace, package);
    let mut make = workspace.command("python3");
    make.args(["-m", "venv", "--clear"]).arg(&environment);
    let mut fill = workspace.command(&environment.join("bin/pip").to_string_lossy());
    fill.args(["install", "--quiet", "--disable-pip-version-check", package]);
    for (name, command) in [("python3 -m venv", make), ("pip install", fill)] {
        let ended = child::quiet(name, command)?;
        if !ended.status.success() {
            bail!("{name} fails\n{}", ended.output.trim_end());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Source, Tool, find_on_path};
    use crate::workspace::Workspace;

    #[test]
    fn a_tool_that_should_be_there_and_is_not_says_where_it_comes_from() {
        let tool = Tool {
            name: "no-such-program-here",
            source: Source::Toolchain,
            needed_for: "nothing",
            variable: None,
        };
        let error = tool.find_or_install(&Workspace::find()).unwrap_err();
        assert!(error.to_string().contains("CONTRIBUTING.md"), "{error}");
    }

    #[test]
    fn a_folder_on_the_path_is_no_program() {
        assert!(find_on_path("sh").is_some());
        assert!(find_on_path(".").is_none());
    }
}
