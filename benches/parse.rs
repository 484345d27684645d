//! Parsing foreign bytes: archives of many small entries, in each compression, and names.
//!
//! The floor for an archive is the digest of the same bytes, which every import computes beside the parsing.

use std::hint::black_box;
use std::io::{Cursor, Write};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest, Sha256};
use tupper::layer::{self, Limits};
use tupper::name::ImageName;

/// Entries as a root filesystem has them: directories, files of a few KiB, links, long names.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let content: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header
    };
    for directory in 0..50 {
        let path = format!("usr/share/doc/package-{directory}");
        let mut entry = header(tar::EntryType::Directory, 0);
        tar.append_data(&mut entry, &path, &[][..]).expect("to memory");
        for file in 0..40 {
            let long = "long-".repeat(file % 30);
            let mut entry = header(tar::EntryType::Regular, content.len() as u64);
            tar.append_data(&mut entry, format!("{path}/{long}{file}"), &content[..]).expect("to memory");
        }
        let mut entry = header(tar::EntryType::Symlink, 0);
        tar.append_link(&mut entry, format!("{path}/link"), "../other").expect("to memory");
    }
    tar.into_inner().expect("to memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn archives(criterion: &mut Criterion) {
    let plain = archive();
    let zstd = zstd::encode_all(&plain[..], 3).expect("to memory");
    let mut group = criterion.benchmark_group("archive");
    group.throughput(Throughput::Bytes(plain.len() as u64));
    group.bench_function("floor: sha256", |b| b.iter(|| black_box(Sha256::digest(&plain))));
    for (name, bytes) in [("plain", plain.clone()), ("gzip", gzip(&plain)), ("zstd", zstd)] {
        let limits = Limits::default();
        group.bench_function(name, |b| {
            b.iter(|| layer::check(Box::new(Cursor::new(bytes.clone())), &limits).expect("a good archive"))
        });
    }
    group.finish();
}

fn names(criterion: &mut Criterion) {
    criterion.bench_function("image name", |b| {
        b.iter(|| black_box("registry.example.com:5000/team/project/app:v1.2.3").parse::<ImageName>().expect("a name"))
    });
}

criterion_group!(benches, archives, names);
criterion_main!(benches);
