//! A host of a test's own: a network namespace with a way out to another, which plays the world outside.
//!
//! ```text
//!   host 192.0.2.1/24, 2001:db8::1/64 ══ 192.0.2.2, 2001:db8::2 outside
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::support::command::Tupper;
use crate::support::store::Store;
use crate::support::{debian, eventually, sh};

/// How long an answer may take that has to come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long an answer is waited for that must not come.
pub const SILENCE: Duration = Duration::from_millis(700);

pub const HOST: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const HOST_SIX: &str = "2001:db8::1";
pub const OUTSIDE_SIX: &str = "2001:db8::2";

/// A network namespace, as long as a process holds it.
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    pub fn new() -> Namespace {
        let mut command = Command::new("unshare");
        command.args(["--net", "--kill-child", "sh", "-c", "ip link set lo up; echo; exec sleep infinity"]);
        let mut holder = command.stdout(Stdio::piped()).spawn().expect("unshare; type: make setup");
        let mut line = [0];
        holder.stdout.take().expect("a pipe").read_exact(&mut line).expect("a namespace");
        Namespace { holder }
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// Runs a program here that has to succeed.
    pub fn sh(&self, line: &str) -> String {
        sh("nsenter", &[&format!("--net={}", self.path().display()), "sh", "-euc", line])
    }

    /// What there is: links, addresses, routes, rules.
    pub fn state(&self) -> String {
        self.sh("ip -o link; ip -o address; ip route show table all; nft list ruleset")
            .lines()
            // A router has addresses that others do not have: RFC 4291, section 2.6.1.
            .filter(|line| !line.starts_with("anycast"))
            // What changes by itself.
            .map(|line| line.split(" valid_lft").next().unwrap_or_default().to_string() + "\n")
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Does something in a network namespace.
pub fn inside<T: Send + 'static>(namespace: &PathBuf, act: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(namespace).expect("a namespace");
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("to enter it");
        act()
    });
    thread.join().expect("it was done")
}

/// A store, a host that its tupper runs on, and the world outside. Derefs to the tupper.
pub struct Net {
    tupper: Tupper,
    pub store: Store,
    pub host: Namespace,
    pub outside: Namespace,
}

impl Net {
    pub fn new() -> Net {
        Net::with(Store::new())
    }

    /// With no other test running beside it.
    pub fn alone() -> Net {
        Net::with(Store::alone())
    }

    fn with(store: Store) -> Net {
        let (host, outside) = (Namespace::new(), Namespace::new());
        host.sh(&format!("ip link add up0 type veth peer name dn0 netns {}", outside.pid()));
        host.sh(&format!(
            "ip address add {HOST}/24 dev up0; ip address add {HOST_SIX}/64 dev up0 nodad; ip link set up0 up"
        ));
        outside.sh(&format!(
            "ip address add {OUTSIDE}/24 dev dn0; ip address add {OUTSIDE_SIX}/64 dev dn0 nodad; ip link set dn0 up"
        ));
        host.sh(&format!("ip route add default via {OUTSIDE}; ip -6 route add default via {OUTSIDE_SIX}"));
        eventually("the links have their own addresses", PATIENCE, || {
            [&host, &outside].iter().all(|ns| !ns.sh("ip -o address").contains("tentative"))
        });
        Net { tupper: Tupper::new(store.root()).on_host(host.path()), store, host, outside }
    }

    /// Starts a container that does nothing, and returns where its network is.
    pub fn idle(&self, name: &str, flags: &str) -> PathBuf {
        self.ok(&format!("run -d --name {name} {flags} busybox sleep 100000"));
        self.namespace(name)
    }

    /// Where a container's network is.
    pub fn namespace(&self, name: &str) -> PathBuf {
        let pid = self.json(&format!("inspect {name}"))[0]["State"]["Pid"].as_u64().expect("a pid");
        PathBuf::from(format!("/proc/{pid}/ns/net"))
    }

    /// A container's address.
    pub fn address(&self, name: &str) -> String {
        let networks = &self.json(&format!("inspect {name}"))[0]["NetworkSettings"]["Networks"];
        let network = networks.as_object().and_then(|all| all.values().next()).expect("a network");
        network["IPAddress"].as_str().expect("an address").to_string()
    }

    /// Runs a script in a Debian that has the packages of the recipe, ping among them.
    pub fn debian(&self, flags: &str, script: &str) -> String {
        let packages = format!("{}:/packages:ro", debian().with_file_name("packages").display());
        let script = format!("dpkg -i /packages/*.deb >/tmp/log 2>&1 || cat /tmp/log; {script}");
        self.ok_with(&format!("run --rm {flags} -v"), &[&packages, "debian", "sh", "-c", &script])
    }

    /// Removes every container; what was on the host before is there again, and nothing more.
    #[track_caller]
    pub fn remove_all(&self, before: &str) {
        self.ok("rm -f --all");
        let now = self.host.state();
        // A pair goes when its namespace does, which the kernel does a moment later.
        eventually("the pairs are gone", PATIENCE, || !self.host.state().contains("tupper"));
        assert!(!now.contains("tupperb"), "the bridge went with the last: {now}");
        assert_eq!(self.host.state(), before);
    }
}

impl Deref for Net {
    type Target = Tupper;

    fn deref(&self) -> &Tupper {
        &self.tupper
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.tupper.run("rm -f --all");
    }
}

/// Somebody who answers, over TCP and UDP, with who has asked: its address as it is seen from there.
pub struct Answerer {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Answerer {
    /// At every address of a namespace.
    pub fn at(namespace: &PathBuf, port: u16) -> Answerer {
        Answerer::bound(namespace, &format!("[::]:{port}"))
    }

    pub fn bound(namespace: &PathBuf, address: &str) -> Answerer {
        let address: SocketAddr = address.parse().expect("an address");
        let (tcp, udp) = inside(namespace, move || {
            (TcpListener::bind(address).expect("to listen"), UdpSocket::bind(address).expect("to listen"))
        });
        let end = Arc::new(AtomicBool::new(false));
        let (of_tcp, of_udp) = (Arc::clone(&end), Arc::clone(&end));
        tcp.set_nonblocking(true).expect("a listener");
        udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        let of_tcp = std::thread::spawn(move || {
            while !of_tcp.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, from)) => drop(stream.write_all(plain(from).as_bytes())),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        let of_udp = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !of_udp.load(Ordering::Relaxed) {
                if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(plain(from).as_bytes(), from);
                }
            }
        });
        Answerer { end, threads: vec![of_tcp, of_udp] }
    }
}

fn plain(from: SocketAddr) -> String {
    match from.ip() {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(six.to_string(), |four| four.to_string()),
        IpAddr::V4(four) => four.to_string(),
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Asks an [`Answerer`] over TCP, from a namespace: who it sees, or `None` when nobody answers.
pub fn ask(from: &PathBuf, address: &str) -> Option<String> {
    ask_for(from, address, PATIENCE)
}

/// [`ask`], when nobody should answer.
pub fn ask_in_vain(from: &PathBuf, address: &str) -> Option<String> {
    ask_for(from, address, SILENCE)
}

fn ask_for(from: &PathBuf, address: &str, limit: Duration) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    })
}

/// [`ask`] over UDP.
pub fn ask_udp(from: &PathBuf, address: &str, limit: Duration) -> Option<String> {
    let address: SocketAddr = address.parse().expect("an address");
    inside(from, move || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(limit)).expect("a socket");
        socket.send_to(b"?", address).ok()?;
        let mut buffer = [0; 2048];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}
