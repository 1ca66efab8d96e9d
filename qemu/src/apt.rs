//! Downloads packages of another architecture and other suites with the host's apt, in a root of its own.
//!
//! The configuration of the host's apt does not change: sources, lists, state and cache are in a folder of this
//! project. Downloads use the host's mirror and proxy. apt checks each suite's signature against Debian's keyring,
//! and index and packages against the signed hashes. This module checks the package's hash again and records it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

use crate::error::{AtPath, Error, Result};
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY_ARCHIVE: &str = "http://deb.debian.org/debian-security";
const ARCHITECTURE: &str = "arm64";

/// A mirror of Debian's packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    archive: String,
    security: String,
}

impl Mirror {
    /// Returns Debian's own mirror.
    pub(crate) fn debian() -> Self {
        Self { archive: ARCHIVE.into(), security: SECURITY_ARCHIVE.into() }
    }

    /// Returns the mirror that the host's apt uses, or Debian's own if it uses none of Debian.
    pub(crate) fn of_host() -> Self {
        let mut apt = Command::new("apt-get");
        apt.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
        process::output(&mut apt).map_or_else(|_| Self::debian(), |targets| Self::among(&targets))
    }

    fn among(targets: &str) -> Self {
        let labelled = |label: &str| {
            let uri = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '))?;
            let is_usable = uri.starts_with("http://") || uri.starts_with("https://");
            is_usable.then(|| uri.trim_end_matches('/').to_owned())
        };
        Self {
            archive: labelled("Debian").unwrap_or_else(|| ARCHIVE.into()),
            security: labelled("Debian-Security").unwrap_or_else(|| SECURITY_ARCHIVE.into()),
        }
    }

    /// Returns the description of `suites` for apt, in its deb822 format.
    pub(crate) fn sources(&self, suites: &[String]) -> String {
        let (security, plain): (Vec<&str>, Vec<&str>) =
            suites.iter().map(String::as_str).partition(|suite| suite.ends_with("-security"));
        let stanza = |uri: &str, suites: Vec<&str>| match suites.as_slice() {
            [] => String::new(),
            suites => format!(
                "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\nArchitectures: {ARCHITECTURE}\n\
                 Targets: Packages\nSigned-By: {KEYRING}\n\n",
                suites.join(" ")
            ),
        };
        stanza(&self.archive, plain) + &stanza(&self.security, security)
    }
}

/// A private apt with current indexes. Its folder is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    suites: Vec<String>,
}

/// A downloaded package.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    pub(crate) file: PathBuf,
}

impl Apt {
    /// Fetches the indexes of `suites` from `mirror`.
    ///
    /// # Errors
    /// apt cannot fetch them, or a signature is invalid.
    pub(crate) fn update(folder: PathBuf, mirror: &Mirror, suites: &[String]) -> Result<Self> {
        let apt = Self { folder, suites: suites.to_vec() };
        let path = |name: &str| apt.folder.join(name);
        for name in ["lists/partial", "cache/archives/partial", "sources.d", "preferences.d"] {
            fs::create_dir_all(path(name)).at(path(name))?;
        }
        let write = |name: &str, text: &str| fs::write(path(name), text).at(path(name));
        write("status", "")?;
        write("sources.d/debian.sources", &mirror.sources(suites))?;
        write("apt.conf", &apt.configuration())?;
        let mut update = apt.command("apt-get");
        process::quietly(update.args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn configuration(&self) -> String {
        let root = self.folder.display();
        format!(
            "Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{root}/sources.d\";\n\
             Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"{root}/preferences.d\";\n\
             Dir::State \"{root}\";\nDir::State::Lists \"{root}/lists\";\nDir::State::status \"{root}/status\";\n\
             Dir::Cache \"{root}/cache\";\nAPT::Architecture \"{ARCHITECTURE}\";\n\
             #clear APT::Architectures;\nAPT::Architectures {{ \"{ARCHITECTURE}\"; }};\n\
             #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Post-Invoke;\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("LC_ALL", "C")
            .arg("-q")
            .arg("-c")
            .arg(self.folder.join("apt.conf"));
        command
    }

    /// Returns the newest package whose full name matches `pattern`.
    ///
    /// # Errors
    /// The pattern is malformed, or no package matches.
    pub(crate) fn newest(&self, pattern: &str) -> Result<String> {
        let regex = Regex::new(&format!("^({pattern})$"))?;
        let names = process::output(self.command("apt-cache").arg("pkgnames"))?;
        let newest = names.lines().filter(|name| regex.is_match(name)).max_by_key(|name| natural_key(name));
        let missing = || Error::NoPackage { pattern: pattern.into(), suites: self.suites.clone() };
        newest.map(str::to_owned).ok_or_else(missing)
    }

    /// Downloads the newest version of the package `name`.
    ///
    /// # Errors
    /// apt cannot fetch it, or its hash differs from the one in the signed index.
    pub(crate) fn download(&self, name: &str) -> Result<Package> {
        let record = process::output(self.command("apt-cache").args(["show", "--no-all-versions", name]))?;
        let field = |key: &str| {
            let line = record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            let missing = || Error::Data { path: name.into(), reason: format!("its record has no {key}") };
            line.map(|value| value.trim().to_owned()).ok_or_else(missing)
        };
        let (version, sha256) = (field("Version")?, field("SHA256")?);
        process::quietly(self.command("apt-get").arg("download").arg(format!("{name}={version}")))?;
        let is_it = |path: &PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
        };
        let entries = fs::read_dir(&self.folder).at(&self.folder)?;
        let file = entries.flatten().map(|entry| entry.path()).find(is_it);
        let file =
            file.ok_or_else(|| Error::Data { path: name.into(), reason: "apt downloaded nothing".into() })?;
        let found = sha256_of(&file)?;
        if found != sha256 {
            return Err(Error::Hash { package: name.into(), found, expected: sha256 });
        }
        Ok(Package { name: name.into(), version, sha256, file })
    }

    /// Returns a command that downloads `packages` and everything they depend on into the folder `archives`. It keeps
    /// files that are there, and resumes partial ones.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn download_with_dependencies(&self, packages: &[&str], archives: &Path) -> Result<Command> {
        let partial = archives.join("partial");
        fs::create_dir_all(&partial).at(&partial)?;
        let mut command = self.command("apt-get");
        // Without locking: apt would lock the PC's dpkg, which takes no part in this.
        command.args(["install", "--yes", "--download-only", "--no-install-recommends"]);
        command.args(["-o", "Debug::NoLocking=true", "-o"]).arg(cache_option(archives));
        command.args(packages);
        Ok(command)
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Errors do not matter: leftovers only take up space.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Extracts the only file of `package` that matches the glob `member` to `to`.
///
/// # Errors
/// No file or several files match, or the file cannot be written.
pub(crate) fn unpack(package: &Path, member: &str, to: &Path) -> Result<()> {
    let folder = package.with_extension("unpacked");
    fs::create_dir_all(&folder).at(&folder)?;
    // The names are the arguments `$0` and `$1`, so the shell never parses them as commands.
    let script = "dpkg-deb --fsys-tarfile \"$0\" | tar -x --wildcards --transform 's|.*/||' \"./$1\"";
    let mut shell = Command::new("sh");
    process::quietly(shell.current_dir(&folder).args(["-c", script]).arg(package).arg(member))?;
    let files: Vec<PathBuf> =
        fs::read_dir(&folder).at(&folder)?.flatten().map(|entry| entry.path()).collect();
    let [file] = files.as_slice() else {
        let reason = format!("{} files match {member}; exactly one must", files.len());
        return Err(Error::Image { path: package.into(), reason });
    };
    fs::rename(file, to).at(to)
}

fn cache_option(archives: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("Dir::Cache::archives=");
    option.push(archives);
    option
}

/// Returns the sha256 of a file in hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn sha256_of(file: &Path) -> Result<String> {
    let said = process::output(Command::new("sha256sum").arg(file))?;
    Ok(said.split_whitespace().next().unwrap_or_default().trim_start_matches('\\').to_owned())
}

/// Returns a key that sorts names by the numbers in them: `6.12.9` before `6.12.10`.
fn natural_key(name: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (text, after) = after.split_at(letters);
        key.push((number.parse().unwrap_or(u64::MAX), text.to_owned()));
        rest = after;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_names_sort_after_older() {
        let mut names =
            ["a-6.12.100+deb13-c", "a-6.12.9+deb13-c", "a-6.12.90+deb13.1-c", "a-6.12.90+deb13-c"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(
            names,
            ["a-6.12.9+deb13-c", "a-6.12.90+deb13-c", "a-6.12.90+deb13.1-c", "a-6.12.100+deb13-c"]
        );
    }

    #[test]
    fn the_hosts_mirror_is_found() {
        let targets = "Docker CE https://download.docker.com/\nDebian-Security http://m/security/\nDebian https://m/d/\n";
        let mirror = Mirror::among(targets);
        assert_eq!(mirror, Mirror { archive: "https://m/d".into(), security: "http://m/security".into() });
        assert_eq!(Mirror::among("Debian cdrom://x/\n"), Mirror::debian());
    }

    #[test]
    fn sources_name_key_and_architecture() {
        let sources = Mirror::debian().sources(&["trixie".into(), "trixie-security".into()]);
        assert_eq!(sources.matches("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg").count(), 2);
        assert!(sources.contains("URIs: http://deb.debian.org/debian-security\nSuites: trixie-security\n"));
        assert!(!Mirror::debian().sources(&["trixie".into()]).contains("security"));
    }
}
