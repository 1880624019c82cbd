//! The certificate authority of this machine's own, which its policy process opens TLS with: the guest trusts it.

use std::fs;
use std::sync::Mutex;

use supermachine_proto::agent::TRUST_BUNDLE;

use crate::sys;

/// The files in which images have the certificates that they trust: Debian, Alpine and Arch; Fedora; SUSE; BSD's place.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const MAX_BYTES: u64 = 4 << 20;
/// Text outside of certificates means nothing in such files.
const BEGIN: &str = "# supermachine: begin\n";
const END: &str = "# supermachine: end\n";

/// The certificate that is trusted now; empty for none.
static TRUSTED: Mutex<String> = Mutex::new(String::new());

/// Has the guest trust this certificate, in PEM, in place of the one before: in the image's own files, and in one at a place
/// that variables of the environment can name. An image in which that cannot be done goes without: then programs
/// accept no connection that is opened.
pub(crate) fn trust(certificate: &str) {
    let mut trusted = sys::lock(&TRUSTED);
    if *trusted == certificate {
        return;
    }
    certificate.clone_into(&mut trusted);
    let mut first = None;
    for path in BUNDLES {
        let Ok(found) = sys::read_file(path, MAX_BYTES) else { continue };
        // There may be more of it than was read.
        if found.len() as u64 == MAX_BYTES {
            continue;
        }
        let changed = with(&found, certificate);
        if changed != found {
            let _ = sys::write_file(path, &changed);
        }
        first.get_or_insert(changed);
    }
    let all = first.unwrap_or_else(|| with(b"", certificate));
    let directory = TRUST_BUNDLE.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let _ = fs::create_dir_all(directory).and_then(|()| sys::write_file(TRUST_BUNDLE, &all));
}

/// The bundle with this certificate in place of the one that was added before.
fn with(bundle: &[u8], certificate: &str) -> Vec<u8> {
    let find = |what: &str, from: usize| {
        let at = bundle.get(from..)?.windows(what.len()).position(|window| window == what.as_bytes());
        at.map(|at| from + at)
    };
    let mut changed = match find(BEGIN, 0).and_then(|begin| Some((begin, find(END, begin)? + END.len()))) {
        Some((begin, end)) => [&bundle[..begin], &bundle[end..]].concat(),
        None => bundle.to_vec(),
    };
    if !certificate.is_empty() {
        if changed.last().is_some_and(|byte| *byte != b'\n') {
            changed.push(b'\n');
        }
        changed.extend([BEGIN, certificate, END].concat().bytes());
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::with;

    #[test]
    fn a_bundle_has_the_last_certificate_alone() {
        let one = with(b"image's", "one\n");
        assert_eq!(one, b"image's\n# supermachine: begin\none\n# supermachine: end\n");
        let two = with(&one, "two\n");
        assert_eq!(two, b"image's\n# supermachine: begin\ntwo\n# supermachine: end\n");
        assert_eq!(with(&[&two[..], b"more\n"].concat(), ""), b"image's\nmore\n");
        assert_eq!(with(b"", ""), b"");
    }
}
