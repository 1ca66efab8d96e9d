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

    /// Returns the packages that an installation of `name` needs, except those that have no shared libraries by their names.
    ///
    /// # Errors
    /// apt cannot resolve the dependencies.
    pub(crate) fn libraries_of(&self, name: &str) -> Result<Vec<String>> {
        let mut simulate = self.command("apt-get");
        simulate.args(["install", "--simulate", "--no-install-recommends", name]);
        let said = process::output(&mut simulate)?;
        let names = said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
        let names = names.map(|name| name.split(':').next().unwrap_or(name));
        Ok(names
            .filter(|name| name.starts_with("lib") || name.starts_with("zlib"))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads the newest version of the package `name`.
    ///
    /// # Errors
    /// As [`download_all`](Self::download_all).
    pub(crate) fn download(&self, name: &str) -> Result<Package> {
        Ok(self.download_all(&[name.to_owned()])?.remove(0))
    }

    /// Downloads the newest versions of the packages `names`.
    ///
    /// # Errors
    /// apt cannot fetch one, or its hash differs from the one in the signed index.
    pub(crate) fn download_all(&self, names: &[String]) -> Result<Vec<Package>> {
        // A call for each package would read apt's cache each time.
        let mut show = self.command("apt-cache");
        let records = process::output(show.args(["show", "--no-all-versions"]).args(names))?;
        let mut packages = names
            .iter()
            .map(|name| described(name, &records))
            .collect::<std::result::Result<Vec<Package>, String>>()
            .map_err(|reason| Error::Data { path: "apt-cache show".into(), reason })?;
        let wanted = packages.iter().map(|package| format!("{}={}", package.name, package.version));
        process::quietly(self.command("apt-get").arg("download").args(wanted))?;
        for package in &mut packages {
            self.check(package)?;
        }
        Ok(packages)
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

    /// Finds the file of a downloaded package and checks its hash.
    fn check(&self, package: &mut Package) -> Result<()> {
        let prefix = format!("{}_", package.name);
        let is_it = |path: &PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&prefix) && file.ends_with(".deb")
        };
        let entries = fs::read_dir(&self.folder).at(&self.folder)?;
        let file = entries.flatten().map(|entry| entry.path()).find(is_it);
        let nothing =
            || Error::Data { path: (&package.name).into(), reason: "apt downloaded nothing".into() };
        package.file = file.ok_or_else(nothing)?;
        let (name, found) = (package.name.clone(), sha256_of(&package.file)?);
        if found != package.sha256 {
            return Err(Error::Hash { package: name, found, expected: package.sha256.clone() });
        }
        Ok(())
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // Errors do not matter: leftovers only take up space.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Returns the package `name` from the records that `apt-cache show` prints. It has no file yet.
fn described(name: &str, records: &str) -> std::result::Result<Package, String> {
    let value = |record: &str, key: &str| {
        let line = record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))?;
        Some(line.trim().to_owned())
    };
    let is_it = |record: &&str| value(record, "Package").is_some_and(|found| found == name);
    let record = records.split("\n\n").find(is_it).ok_or_else(|| format!("no record of {name}"))?;
    let field = |key| value(record, key).ok_or_else(|| format!("the record of {name} has no {key}"));
    Ok(Package {
        name: name.into(),
        version: field("Version")?,
        sha256: field("SHA256")?,
        file: PathBuf::new(),
    })
}

/// Extracts the only file of `package` that matches the glob `member` to `to`.
///
/// # Errors
/// No file or several files match, or the file cannot be written.
pub(crate) fn unpack(package: &Path, member: &str, to: &Path) -> Result<()> {
    let folder = package.with_extension("unpacked");
    fs::create_dir_all(&folder).at(&folder)?;
    extract(package, &format!("./{member}"), "s|.*/||", &folder)?;
    let files: Vec<PathBuf> =
        fs::read_dir(&folder).at(&folder)?.flatten().map(|entry| entry.path()).collect();
    let [file] = files.as_slice() else {
        let reason = format!("{} files match {member}; exactly one must", files.len());
        return Err(Error::Image { path: package.into(), reason });
    };
    fs::rename(file, to).at(to)
}

/// Extracts all files of `package` that match the glob `members`, with their folders, into the folder `to`.
///
/// # Errors
/// No file matches, or one cannot be written.
pub(crate) fn unpack_tree(package: &Path, members: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to).at(to)?;
    extract(package, members, "", to)
}

fn extract(package: &Path, members: &str, transform: &str, to: &Path) -> Result<()> {
    // The names are the arguments `$0` to `$2`, so the shell never parses them as commands.
    let script = "dpkg-deb --fsys-tarfile \"$0\" | tar -x --wildcards --transform \"$2\" \"$1\"";
    let mut shell = Command::new("sh");
    shell.current_dir(to).args(["-c", script]).arg(package).args([members, transform]);
    process::quietly(&mut shell)
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
    fn records_of_several_packages_are_told_apart() {
        let records = "Package: a-b\nVersion: 1\nSHA256: x\n\nPackage: a\nVersion: 2\nSHA256: y\n\n";
        let package = described("a", records).unwrap();
        assert_eq!((package.version.as_str(), package.sha256.as_str()), ("2", "y"));
        assert_eq!(described("b", records).unwrap_err(), "no record of b");
    }

    #[test]
    fn sources_name_key_and_architecture() {
        let sources = Mirror::debian().sources(&["trixie".into(), "trixie-security".into()]);
        assert_eq!(sources.matches("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg").count(), 2);
        assert!(sources.contains("URIs: http://deb.debian.org/debian-security\nSuites: trixie-security\n"));
        assert!(!Mirror::debian().sources(&["trixie".into()]).contains("security"));
    }
}
