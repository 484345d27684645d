//! Root filesystems from web servers: `image import URL`.

use std::fs;

use crate::support::busybox;
use crate::support::http::{End, Reply, Server};
use crate::support::store::{Store, alone};

#[test]
fn a_url_is_imported_as_the_file_it_leads_to() {
    let (store, bytes) = (Store::new(), fs::read(busybox()).expect("the tarball"));
    let (_home, tupper) = alone(&store);
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/moved" => Reply::redirect("/there?key=secret"),
        "/there?key=secret" => Reply::range_of(asked, &bytes),
        // Its end alone says how long it is.
        "/open" => Reply::new(200, bytes.as_slice()).ending(End::Open),
        _ => Reply::new(404, "no such file"),
    });
    let chain = |image: &str| tupper.json(&format!("image inspect {image}"))[0]["RootFS"].clone();
    let expected = chain("busybox");
    for path in ["moved", "there?key=secret", "open"] {
        let image = tupper.ok(&format!("image import http://{}/{path}", server.host()));
        assert_eq!(chain(&image), expected, "{path}");
    }
    let error = tupper.fails(1, &format!("image import http://me:secret@{}/none?key=secret", server.host()));
    assert!(error.contains("/none") && error.contains("404") && !error.contains("secret"), "{error}");
    for bad in ["http://", "https:///x", "http://127.0.0.1:1/x"] {
        tupper.fails(1, &format!("image import {bad}"));
    }
    assert_eq!(fs::read_dir(store.root().join("fs/staging")).expect("staging").count(), 0);
}

#[test]
fn what_is_cut_goes_on_only_where_it_is_known_to_be_the_same() {
    let (store, bytes) = (Store::new(), fs::read(busybox()).expect("the tarball"));
    let (_home, tupper) = alone(&store);
    let server = Server::start(move |asked| {
        let (path, tag) = asked.path.rsplit_once('/').expect("a path");
        let first = asked.range().is_none();
        let mut reply = match (first, path) {
            // RFC 9110, 13.1.5: what If-Range does not name comes from its beginning.
            (false, "/changes") => Reply::new(200, bytes.as_slice()),
            _ => Reply::range_of(asked, &bytes),
        };
        match tag {
            "strong" => reply = reply.with("ETag", "\"1\""),
            "weak" => reply = reply.with("ETag", "W/\"1\""),
            _ => {}
        }
        if first { reply.ending(End::Cut(bytes.len() / 2)) } else { reply }
    });
    let import = |path: &str| format!("image import http://{}/{path}", server.host());
    tupper.ok(&import("same/strong"));
    let asked = server.asked();
    assert_eq!((asked.len(), asked[1].header("if-range")), (2, Some("\"1\"")));
    assert!(asked[1].range().is_some());
    let error = tupper.fails(1, &import("changes/strong"));
    assert!(error.contains("cannot go on where the connection was cut"), "{error}");
    for tag in ["none", "weak"] {
        let asks = server.asked().len();
        tupper.fails(1, &import(&format!("same/{tag}")));
        assert_eq!(server.asked().len(), asks + 1, "a part of who knows what was asked for");
    }
    assert_eq!(tupper.lines("images -q").len(), 2, "busybox, and what was imported whole");
    assert_eq!(fs::read_dir(store.root().join("fs/staging")).expect("staging").count(), 0);
}
