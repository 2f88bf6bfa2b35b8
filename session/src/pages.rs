//! Pages for browsers, on the port where WebSocket clients connect: a game is then played with nothing else installed.
//! What is served is public, the same for everybody, and given by the program: nothing here reads what a player did.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use ecow::{EcoString, eco_format};

/// Bytes of a page's path at most.
const PATH_BYTES_MAX: usize = 256;
/// Bytes of a file that is read from a folder at most.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a page may do: run scripts and show images of this port, and talk to servers over WebSocket, of which a cluster
/// has several. No inline script, no frame around it, no form that goes elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                      media-src 'self'; manifest-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// The pages of a program, by path. [`Pages::default`] has none.
#[derive(Clone, Default)]
pub struct Pages {
    files: BTreeMap<EcoString, Cow<'static, [u8]>>,
    /// By the path under which each is found, which ends with a slash.
    folders: Vec<(EcoString, PathBuf)>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Pages({:?}, folders {:?})", self.files.keys(), self.folders)
    }
}

/// What is answered to a request for a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    status: &'static str,
    /// Besides those that every answer has; each ends its line.
    headers: EcoString,
    body: Cow<'static, [u8]>,
}

impl Pages {
    /// Adds a file that is part of the program. What ends with `/index.html` is the page of its folder.
    ///
    /// # Panics
    /// If the path is none that a browser could ask for: it begins with a slash, and each of its parts has letters,
    /// digits, `-`, `_` and `.`, which is not its first.
    #[must_use]
    pub fn file(mut self, path: &str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        assert!(is_path(path) && !path.ends_with('/'), "{path:?} is no path of a page");
        self.files.insert(path.into(), body.into());
        self
    }

    /// Adds a folder of files, which are read when they are asked for: what is edited there is seen at the next reload.
    /// Files of [`Pages::file`] come first.
    ///
    /// # Panics
    /// If the path is none that a browser could ask for.
    #[must_use]
    pub fn folder(mut self, path: &str, folder: impl Into<PathBuf>) -> Self {
        let path = path.trim_end_matches('/');
        assert!(path.is_empty() || is_path(path), "{path:?} is no path of a page");
        self.folders.push((eco_format!("{path}/"), folder.into()));
        self
    }

    /// These, and those of others under paths that these have not.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        for (path, body) in others.files {
            self.files.entry(path).or_insert(body);
        }
        self.folders.extend(others.folders);
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty()
    }

    /// Answers a request for `target`, a path with a query or without.
    pub(crate) async fn answer(&self, target: &str) -> Answer {
        let (path, query) = target.split_once('?').map_or((target, None), |(a, b)| (a, Some(b)));
        if !is_path(path) {
            return self.missing();
        }
        let file = if path.ends_with('/') { eco_format!("{path}index.html") } else { path.into() };
        if let Some(body) = self.find(&file).await {
            let headers = eco_format!("Content-Type: {}\r\n", content_type(&file));
            return Answer { status: "200 OK", headers, body };
        }
        let page = eco_format!("{path}/index.html");
        if !path.ends_with('/') && self.find(&page).await.is_some() {
            // With the slash, so that what the page names beside it is found.
            let query = query.map(|query| eco_format!("?{query}")).unwrap_or_default();
            let headers = eco_format!("Location: {path}/{query}\r\n");
            return Answer { status: "308 Permanent Redirect", headers, body: Cow::default() };
        }
        self.missing()
    }

    async fn find(&self, path: &str) -> Option<Cow<'static, [u8]>> {
        if let Some(body) = self.files.get(path) {
            return Some(body.clone());
        }
        for (at, folder) in &self.folders {
            let Some(rest) = path.strip_prefix(at.as_str()) else { continue };
            let (folder, rest) = (folder.clone(), rest.to_owned());
            // On a thread that may wait for a disk: this one has players to serve.
            let read = tokio::task::spawn_blocking(move || read_within(&folder, &rest));
            match read.await {
                Ok(Ok(body)) => return Some(body.into()),
                Ok(Err(error)) => tracing::debug!(%error, path, "a page's file was not read"),
                Err(error) => tracing::warn!(%error, path, "reading a page's file failed"),
            }
        }
        None
    }

    fn missing(&self) -> Answer {
        let pages = self.files.keys().filter_map(|path| path.strip_suffix("index.html"));
        let folders = self.folders.iter().map(|(at, _)| at.as_str());
        let there = pages.chain(folders).collect::<Vec<_>>().join(" ");
        let body = format!("There is no such page. There are: {there}\n").into_bytes().into();
        let headers = "Content-Type: text/plain; charset=utf-8\r\n".into();
        Answer { status: "404 Not Found", headers, body }
    }
}

impl Answer {
    /// As it stands on the wire; to HEAD without its body.
    pub(crate) fn encode(&self, with_body: bool) -> Vec<u8> {
        let Self { status, headers, body } = self;
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nContent-Security-Policy: {POLICY}\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        let mut bytes = head.into_bytes();
        if with_body {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}

/// Whether a path names something below the root and nothing else: no part is empty, begins with a dot or has a
/// character that a file system or a browser reads as more than a letter.
fn is_path(path: &str) -> bool {
    let is_part = |part: &str| {
        !part.starts_with('.')
            && !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let Some(rest) = path.strip_prefix('/') else { return false };
    let parts = rest.strip_suffix('/').unwrap_or(rest);
    path.len() <= PATH_BYTES_MAX && (rest.is_empty() || parts.split('/').all(is_part))
}

/// Reads a file that lies within a folder, also when links on the disk lead elsewhere.
fn read_within(folder: &Path, path: &str) -> io::Result<Vec<u8>> {
    let folder = folder.canonicalize()?;
    let file = folder.join(path).canonicalize()?;
    let about = fs::metadata(&file)?;
    if !file.starts_with(&folder) || !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("it is outside of its folder, no file, or too long"));
    }
    fs::read(file)
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wasm" => "application/wasm",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages {
        Pages::default()
            .file("/index.html", b"start".as_slice())
            .file("/arena/index.html", b"arena".as_slice())
            .file("/arena/arena.js", b"run()".as_slice())
    }

    async fn asked(pages: &Pages, target: &str) -> String {
        String::from_utf8(pages.answer(target).await.encode(true)).unwrap()
    }

    #[tokio::test]
    async fn a_page_is_found_with_its_type_and_a_policy_that_lets_no_inline_script_run() {
        for (target, body, kind) in [
            ("/", "start", "text/html"),
            ("/arena/", "arena", "text/html"),
            ("/arena/?id=7", "arena", "text/html"),
            ("/arena/arena.js", "run()", "text/javascript"),
        ] {
            let answer = asked(&pages(), target).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert!(answer.contains(&format!("Content-Type: {kind}; charset=utf-8")), "{answer}");
            assert!(answer.contains("default-src 'none'; script-src 'self';"), "{answer}");
            assert!(!answer.contains("unsafe-inline"), "{answer}");
        }
        let head = pages().answer("/").await.encode(false);
        assert!(String::from_utf8(head).unwrap().contains("Content-Length: 5\r\n"));
    }

    #[tokio::test]
    async fn a_folder_without_its_slash_leads_to_the_one_with_it() {
        let answer = asked(&pages(), "/arena?id=7").await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.contains("\r\nLocation: /arena/?id=7\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_answered_with_what_is() {
        for target in
            ["/x", "x", "", "*", "/arena/arena.js/", "//arena/", "/%61rena/", "/index.html/.."]
        {
            let answer = asked(&pages(), target).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
            let there = answer.rsplit_once("There are: ").unwrap().1;
            assert_eq!(there.split_whitespace().collect::<Vec<_>>(), ["/arena/", "/"]);
        }
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        assert!(asked(&pages(), &long).await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn a_folder_gives_its_files_and_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("web");
        fs::create_dir_all(folder.join("sub")).unwrap();
        for (name, text) in
            [("web/index.html", "mine"), ("web/sub/a.css", "a"), ("secret.txt", "no")]
        {
            fs::write(place.path().join(name), text).unwrap();
        }
        fs::write(folder.join(".hidden"), "no").unwrap();
        std::os::unix::fs::symlink(place.path().join("secret.txt"), folder.join("link.txt"))
            .unwrap();
        let pages = Pages::default().folder("/mine", &folder);
        for (target, status) in [
            ("/mine/", "200"),
            ("/mine", "308"),
            ("/mine/sub/a.css", "200"),
            ("/mine/sub", "404"),
            ("/mine/../secret.txt", "404"),
            ("/mine/%2e%2e/secret.txt", "404"),
            ("/mine/..%2fsecret.txt", "404"),
            ("/mine//etc/passwd", "404"),
            ("/mine/link.txt", "404"),
            ("/mine/.hidden", "404"),
            ("/minesecret.txt", "404"),
        ] {
            let answer = asked(&pages, target).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {answer}");
        }
        fs::write(folder.join("index.html"), "edited").unwrap();
        assert!(asked(&pages, "/mine/").await.ends_with("edited"));
    }

    #[test]
    fn pages_of_two_are_joined_and_the_first_ones_stay() {
        let joined = pages().and(
            Pages::default()
                .file("/index.html", b"other".as_slice())
                .file("/x.js", b"x".as_slice()),
        );
        assert_eq!(&*joined.files["/index.html"], b"start");
        assert_eq!(joined.files.len(), 4);
        assert!(Pages::default().is_empty() && !joined.is_empty());
    }
}
