//! `cargo xtask traces`: draws the traces of `docs/tracing.md` anew, as they arrive at a real collector.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::workspace::Workspace;
use crate::{child, tools};

/// The page, and what is drawn in it: the picture's name, and the test that makes it.
const PAGE: &str = "docs/tracing.md";
const DRAWN: [(&str, &str); 2] = [
    ("join-trace", "one_join_is_one_trace_at_a_real_collector"),
    ("duel-trace", "the_last_card_of_a_duel_is_followed_to_the_store"),
];
/// Where a trace begins in the page.
const FENCE: &str = "```text\ntrace ";

/// Runs the stories, and puts what they saw into the page.
///
/// # Errors
/// When a story fails, or the page has no place for its trace.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<ExitCode> {
    let collector = tools::collector(workspace)?;
    let folder = workspace.target.join("traces");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let stories = DRAWN.map(|(_, story)| story).join(" ");
    let words = format!("test --workspace --all-features --locked --test cluster -- {stories}");
    let mut command = workspace.cargo(&words);
    command.env("GREENROOM_KEEP_TRACE", &folder).env("GREENROOM_OTELCOL", collector);
    if !child::stream(&mut command)?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let page = workspace.root.join(PAGE);
    let mut text = fs::read_to_string(&page).with_context(|| format!("reading {PAGE}"))?;
    for (name, _) in DRAWN {
        let read = |kind: &str| {
            let file = folder.join(format!("{name}.{kind}"));
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
        };
        text = with_trace(&text, name, &read("txt")?)
            .with_context(|| format!("{PAGE} shows no {name}.svg with the trace below it"))?;
        let picture = workspace.root.join("docs").join(format!("{name}.svg"));
        fs::write(&picture, read("svg")?)
            .with_context(|| format!("writing {}", picture.display()))?;
    }
    ensure!(text.ends_with('\n'), "{PAGE} ends in the middle of a line");
    fs::write(&page, text).with_context(|| format!("writing {PAGE}"))?;
    println!("{PAGE} shows them; read whether its words are still true");
    Ok(ExitCode::SUCCESS)
}

/// The page with another trace below this picture.
fn with_trace(page: &str, name: &str, trace: &str) -> Option<String> {
    let picture = page.find(&format!("({name}.svg)"))?;
    let begins = picture + page[picture..].find(FENCE)? + "```text\n".len();
    let ends = begins + page[begins..].find("```")?;
    let lines = trace.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    Some(format!("{}{lines}\n{}", &page[..begins], &page[ends..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_takes_the_place_of_the_one_below_its_picture() {
        let page = "![a](join-trace.svg)\n\n```text\ntrace 1\n  x\n```\n\
                    ![b](duel-trace.svg)\n```text\ntrace 2\n```\nend\n";
        let new = with_trace(page, "duel-trace", "trace 3\n y  \n").unwrap();
        assert_eq!(
            new,
            "![a](join-trace.svg)\n\n```text\ntrace 1\n  x\n```\n\
             ![b](duel-trace.svg)\n```text\ntrace 3\n y\n```\nend\n"
        );
        assert_eq!(with_trace(page, "other", "trace 3\n"), None);
    }

    #[test]
    fn the_page_has_a_place_for_each() {
        let page = std::fs::read_to_string(Workspace::find().root.join(PAGE)).unwrap();
        for (name, _) in DRAWN {
            assert!(with_trace(&page, name, "trace 0\n").is_some(), "{name}");
        }
    }
}
