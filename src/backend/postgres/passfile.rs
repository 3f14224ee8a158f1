//! The passfile of libpq: one line `host:port:database:user:password` for each server.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::address::SOCKET_FOLDERS;

/// Its text, or nothing and a warning.
pub(super) fn read(path: &Path, is_named: bool, warnings: &mut Vec<String>) -> String {
    let why = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => return String::new(),
        Err(error) => error.to_string(),
        Ok(found) if !found.is_file() => "it is not a file".to_owned(),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            format!("others may read it; chmod 0600 {}", path.display())
        }
        Ok(_) => match std::fs::read_to_string(path) {
            Ok(text) => return text,
            Err(error) => error.to_string(),
        },
    };
    warnings.push(format!("the passfile {} is ignored: {why}", path.display()));
    String::new()
}

/// The password of the first line that fits.
pub(super) fn password_for(
    passfile: &str,
    host: &str,
    port: u16,
    database: &str,
    user: &str,
) -> Option<String> {
    let host = if SOCKET_FOLDERS.contains(&host) { "localhost" } else { host };
    let wanted = [host, &port.to_string(), database, user];
    let mut lines = passfile.lines().filter(|line| !line.starts_with('#'));
    let rest = lines.find_map(|line| wanted.iter().try_fold(line, |line, field| after_field(line, field)))?;
    let mut password = String::new();
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        password.push(if character == '\\' { characters.next().unwrap_or(character) } else { character });
    }
    Some(password).filter(|password| !password.is_empty())
}

/// What follows the line's first field and its colon, if the field is `wanted` or `*`.
fn after_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut characters = line.chars();
    loop {
        let character = match characters.next()? {
            ':' => return wanted.next().is_none().then_some(characters.as_str()),
            '\\' => characters.next()?,
            character => character,
        };
        if wanted.next() != Some(character) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_passfile_that_fits_has_the_password() {
        let passfile = "# a:1:d:u:comment\n\na:1:d:u:first\na:1:d:u:second\n*:2:*:u:with\\:colon\\\\\n\
                        \\:\\:1:*:*:*:v6\nlocalhost:*:*:*:socket\n\\*:*:*:*:star\n\
                        b:1:d:u\nb:1:d:u:\nb:*:*:*:lost:x";
        for (host, port, database, user, password) in [
            ("a", 1, "d", "u", Some("first")),
            ("a", 1, "d", "v", None),
            ("aa", 1, "d", "u", None),
            ("any", 2, "d", "u", Some("with:colon\\")),
            ("::1", 1, "d", "u", Some("v6")),
            ("/tmp", 1, "d", "u", Some("socket")),
            ("/run/pg", 1, "d", "u", None),
            ("*", 1, "d", "u", Some("star")),
            ("b", 1, "d", "u", None),
            ("b", 3, "d", "u", Some("lost:x")),
        ] {
            let found = password_for(passfile, host, port, database, user);
            assert_eq!(found.as_deref(), password, "{host}:{port}");
        }
    }
}
