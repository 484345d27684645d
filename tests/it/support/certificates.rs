//! Certificates of a test's own, made by openssl(1).

use std::fs;
use std::path::Path;
use std::process::Command;

fn openssl(dir: &Path, line: &str) {
    let done = Command::new("openssl").args(line.split_whitespace()).current_dir(dir).output().expect("openssl");
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

const EC: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// Makes in `dir` an authority `ca.crt`, for 127.0.0.1 `server.crt` and `server.key` that it signed, for a client
/// `client.crt` and `client.key`, and a directory `certs` with the authority alone.
pub fn authority(dir: &Path) {
    fs::write(dir.join("server.ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
        .expect("a file");
    fs::write(dir.join("client.ext"), "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n").expect("a file");
    openssl(dir, &format!("req -x509 {EC} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"));
    for name in ["server", "client"] {
        openssl(dir, &format!("req {EC} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let sign = format!("-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext");
        openssl(dir, &format!("x509 -req -in {name}.csr -out {name}.crt {sign}"));
    }
    fs::create_dir(dir.join("certs")).expect("a directory");
    fs::copy(dir.join("ca.crt"), dir.join("certs/ca.crt")).expect("a copy");
}

/// Makes `server.crt` and `server.key` for 127.0.0.1: authority and server in one, the recipe of Docker's manual for a
/// registry of one's own.
pub fn itself(dir: &Path) {
    let line = "req -x509 -newkey rsa:2048 -nodes -keyout server.key -out server.crt -days 2 -subj /CN=me \
                -addext subjectAltName=IP:127.0.0.1";
    openssl(dir, line);
}

/// [`itself`], whose time was over in 2021.
pub fn itself_long_ago(dir: &Path) {
    let conf = "[ca]\ndefault_ca=one\n[one]\ndatabase=index.txt\nserial=serial\npolicy=any\nx509_extensions=more\n\
                [any]\ncommonName=supplied\n[more]\nbasicConstraints=CA:TRUE\nsubjectAltName=IP:127.0.0.1\n";
    fs::write(dir.join("ca.cnf"), conf).expect("a file");
    fs::write(dir.join("index.txt"), "").expect("a file");
    fs::write(dir.join("serial"), "01\n").expect("a file");
    openssl(dir, &format!("req {EC} -keyout server.key -out server.csr -subj /CN=me"));
    let time = "-startdate 20200101000000Z -enddate 20210101000000Z";
    let files = "-config ca.cnf -in server.csr -keyfile server.key -out server.crt -outdir .";
    openssl(dir, &format!("ca -selfsign -batch -notext -md sha256 {time} {files}"));
}
