use std::fs::File;
use std::os::fd::AsFd;

#[test]
fn time_it() {
    let dir = std::env::var("INTO").expect("INTO");
    let tar = std::env::var("TAR").expect("TAR");
    let start = std::time::Instant::now();
    let into = File::open(dir).expect("dir");
    let out = tupper::layer::unpack(Box::new(File::open(tar).expect("tar")), into.as_fd(), &Default::default());
    println!("{out:?} {:?}", start.elapsed());
    assert!(out.is_ok());
}
