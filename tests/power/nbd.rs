//! An NBD server that records what is written to it: as much of the protocol as nbdfuse(1) needs.
//!
//! The protocol is doc/proto.md of the NetworkBlockDevice project; the sections are named where they matter.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::tape::{Event, Tape};

/// "Transmission flags": has flags, flush, trim, write zeroes. No FUA: every order comes as a flush.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;

/// Serves one client until it leaves, or is killed. `live` is the disk as the client sees it; the tape gets what changes it.
pub fn serve(mut client: UnixStream, live: &File, tape: &Arc<Tape>) -> io::Result<()> {
    if !negotiate(&mut client, live.metadata()?.len())? {
        return Ok(());
    }
    loop {
        // "Request message"
        let mut request = [0; 28];
        match client.read_exact(&mut request) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let [command, cookie, offset, length] =
            [&request[6..8], &request[8..16], &request[16..24], &request[24..28]].map(number);
        let size = usize::try_from(length).expect("32 bits");
        let mut data = Vec::new();
        let done = match command {
            0 => {
                data.resize(size, 0);
                live.read_exact_at(&mut data, offset)
            }
            1 => {
                let mut written = vec![0; size];
                client.read_exact(&mut written)?;
                tape.record(live, Event::Write { offset, data: written.into() })
            }
            2 => return Ok(()),
            3 => tape.record(live, Event::Flush),
            4 | 6 => tape.record(live, Event::Zero { offset, length }),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        // "Simple reply message"
        let error = done.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO).unsigned_abs());
        let mut reply = [0x6744_6698u32.to_be_bytes(), error.to_be_bytes()].concat();
        reply.extend(cookie.to_be_bytes());
        if error == 0 {
            reply.extend(data);
        }
        client.write_all(&reply)?;
    }
}

/// "Fixed newstyle negotiation". False when the client wants no export after all.
fn negotiate(client: &mut UnixStream, size: u64) -> io::Result<bool> {
    client.write_all(b"NBDMAGIC")?;
    client.write_all(&OPTION_MAGIC.to_be_bytes())?;
    client.write_all(&3u16.to_be_bytes())?; // fixed newstyle, no zeroes
    client.read_exact(&mut [0; 4])?; // the client's flags
    loop {
        let mut header = [0; 16];
        client.read_exact(&mut header)?;
        let option = u32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
        let mut data = vec![0; usize::try_from(number(&header[12..])).expect("32 bits")];
        client.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("short").to_be_bytes();
            let head = [&REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length].concat();
            client.write_all(&[&head, data].concat())
        };
        match option {
            // NBD_OPT_GO: "NBD_INFO_EXPORT"
            7 => {
                reply(REP_INFO, &[&0u16.to_be_bytes()[..], &size.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat())?;
                reply(REP_ACK, &[])?;
                return Ok(true);
            }
            // NBD_OPT_ABORT
            2 => {
                reply(REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REP_ERR_UNSUP, &[])?,
        }
    }
}

/// A number in network byte order.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
