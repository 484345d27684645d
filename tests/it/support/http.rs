//! An HTTP server of a test's own, which answers as the test says: late, short, wrong, or not at all.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    /// As text.
    pub body: String,
    pub bytes: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Where a range that it asks for begins.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What it is told.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

/// How the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As its length says.
    Whole,
    /// The connection is closed after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes.
    Stall(usize),
    /// Without a length: only the connection's end ends it.
    Open,
    /// There is no answer at all: the connection is closed.
    Gone,
    /// One byte at a time, each after a pause of so many ms.
    Trickle(u64),
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_string(), value.into()));
        self
    }

    pub fn ending(mut self, end: End) -> Reply {
        self.end = end;
        self
    }

    pub fn redirect(to: impl Into<String>) -> Reply {
        Reply::new(307, "elsewhere").with("Location", to)
    }

    /// The bytes that are asked for: all, or those from the range's start on.
    pub fn range_of(asked: &Asked, bytes: &[u8]) -> Reply {
        match asked.range() {
            Some(start) if start < bytes.len() => Reply::new(206, &bytes[start..])
                .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, bytes),
        }
    }
}

type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A server on loopback; its threads have ended when it is dropped.
pub struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        Server::speaking(None, answer)
    }

    /// One that speaks TLS.
    pub fn with_tls(config: ServerConfig, answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        Server::speaking(Some(Arc::new(config)), answer)
    }

    fn speaking(tls: Option<Arc<ServerConfig>>, answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let answer: Arc<Answer> = Arc::new(answer);
        let thread = {
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut connections = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let Ok(stream) = stream else { continue };
                    let (asked, stop, answer) = (Arc::clone(&asked), Arc::clone(&stop), Arc::clone(&answer));
                    let tls = tls.clone();
                    // A client that goes away in the middle is what many a test is about.
                    connections.push(std::thread::spawn(move || drop(accept(stream, tls, &asked, &stop, &*answer))));
                }
                for connection in connections {
                    connection.join().expect("a connection's thread");
                }
            })
        };
        Server { address, asked, stop, listener: Some(thread) }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All that was asked until now.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often something was asked for whose path begins so.
    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.starts_with(path)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take()
            && listener.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a thread of the server panicked");
        }
    }
}

fn accept(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    log: &Mutex<Vec<Asked>>,
    stop: &AtomicBool,
    answer: &Answer,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let out = stream.try_clone()?;
    let patient = Patient { stream, stop };
    match tls {
        None => serve(patient, out, log, stop, answer),
        Some(config) => {
            let tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
            let tls = Rc::new(RefCell::new(StreamOwned::new(tls, patient)));
            serve(Tls(Rc::clone(&tls)), Tls(tls), log, stop, answer)
        }
    }
}

fn serve(
    input: impl Read,
    mut out: impl Write,
    log: &Mutex<Vec<Asked>>,
    stop: &AtomicBool,
    answer: &Answer,
) -> std::io::Result<()> {
    let mut input = BufReader::new(input);
    loop {
        let Some(first) = input.fill_buf()?.first().copied() else { return Ok(()) };
        if first == 0x16 {
            // A TLS client; what a plain server says to it.
            return out.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n");
        }
        let mut line = String::new();
        input.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_string);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut asked = Asked { method, path, headers: Vec::new(), body: String::new(), bytes: Vec::new() };
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            asked.headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let length: u64 = asked.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        (&mut input).take(length).read_to_end(&mut asked.bytes)?;
        asked.body = String::from_utf8_lossy(&asked.bytes).into_owned();
        log.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        let reply = answer(&asked);
        if reply.end == End::Gone {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Because\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if reply.end != End::Open && !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        out.write_all((head + "\r\n").as_bytes())?;
        match reply.end {
            End::Whole => out.write_all(&reply.body)?,
            End::Cut(after) => return out.write_all(&reply.body[..after]),
            End::Open | End::Gone => return out.write_all(&reply.body),
            End::Stall(after) => {
                out.write_all(&reply.body[..after])?;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                return Ok(());
            }
            End::Trickle(pause) => {
                for byte in &reply.body {
                    out.write_all(&[*byte])?;
                    std::thread::sleep(Duration::from_millis(pause));
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Both directions of a TLS connection.
struct Tls<'a>(Rc<RefCell<StreamOwned<ServerConnection, Patient<'a>>>>);

impl Read for Tls<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

impl Write for Tls<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut stream = self.0.borrow_mut();
        let length = stream.write(bytes)?;
        stream.flush().map(|()| length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// Reads until the client closes or the server is told to stop.
struct Patient<'a> {
    stream: TcpStream,
    stop: &'a AtomicBool,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        loop {
            match self.stream.read(buffer) {
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(0);
                    }
                }
                result => return result,
            }
        }
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}
