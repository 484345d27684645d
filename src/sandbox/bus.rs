//! The few words of D-Bus that it takes to have systemd make a scope: one connection to the system bus, calls that wait
//! for their answer, signals in between.
//!
//! The wire format is the crate's (zbus without its connections: those need an async runtime, and threads, which this
//! process must not have when it clones). What is left is here: the handshake, the header and reading to its end. D-Bus
//! Specification, "Message Protocol" and "Authentication Protocol".

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{LE, to_bytes};
use zbus::{ObjectPath, Type, Variant};

use super::scope::{Property, Scope, Value};
use crate::error::{Error, Kind, Result};

/// The system bus's address where nothing else is said: D-Bus Specification, "Well-known Message Bus Instances".
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// The longest wait for an answer, that of sd-bus: systemd may be busy with a reload.
const PATIENCE: Duration = Duration::from_secs(25);

/// No message of systemd's is nearly as long; the specification allows 128 MiB.
const LONGEST: usize = 1 << 20;

/// How often a unit of the same name that systemd has not let go of yet is waited for, and how long each time.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

// D-Bus Specification, "Message Types" and "Header Fields".
const CALL: u8 = 1;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// An object that is called: its bus name, its path and the interface.
struct Object(&'static str, &'static str, &'static str);

const BUS: Object = Object("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus");
const SYSTEMD: Object =
    Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");

/// The fixed part and the fields of a header: `yyyyuua(yv)`.
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// Has systemd make a scope with this process in it, and waits until it is there.
pub(super) fn start_scope(scope: &Scope, pid: i32) -> Result<()> {
    let mut bus = Bus::connect()?;
    // systemd sends its signals only where somebody has asked for them.
    bus.call::<_, ()>(&SYSTEMD, "Subscribe", &())?;
    let rule = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
    bus.call::<_, ()>(&BUS, "AddMatch", &rule)?;
    let pid = Property { name: "PIDs", value: Value::Processes(vec![pid.unsigned_abs()]) };
    let properties: Vec<(&str, Variant<'_>)> = [&pid].into_iter().chain(&scope.properties).map(pair).collect();
    let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (scope.unit.as_str(), "fail", properties, none);
    let mut attempt = 1;
    let job = loop {
        match bus.call::<_, zbus::OwnedObjectPath>(&SYSTEMD, "StartTransientUnit", &body) {
            // The one that was there before has no process any more, and goes when systemd has seen that.
            Err(e) if e.kind() == Kind::AlreadyExists && attempt < ATTEMPTS => std::thread::sleep(PAUSE),
            answer => break answer?,
        }
        attempt += 1;
    };
    loop {
        let (_, removed, _, outcome): (u32, zbus::OwnedObjectPath, String, String) = bus.next_signal("JobRemoved")?;
        if removed == job {
            return match outcome.as_str() {
                "done" => Ok(()),
                other => Err(Error::new(Kind::Io, format!("systemd could not make it: {other}; journalctl says why"))),
            };
        }
    }
}

/// Changes properties of a unit until it ends.
pub(super) fn set_properties(unit: &str, properties: &[Property]) -> Result<()> {
    let properties: Vec<(&str, Variant<'_>)> = properties.iter().map(pair).collect();
    Bus::connect()?.call::<_, ()>(&SYSTEMD, "SetUnitProperties", &(unit, true, properties))
}

fn pair(property: &Property) -> (&'static str, Variant<'_>) {
    let value = match &property.value {
        Value::Flag(flag) => Variant::from(*flag),
        Value::Text(text) => Variant::from(text.as_str()),
        Value::Number(number) => Variant::from(*number),
        Value::Set(bytes) => Variant::from(bytes.clone()),
        Value::Rates(rates) => Variant::from(rates.clone()),
        Value::Processes(pids) => Variant::from(pids.clone()),
    };
    (property.name, value)
}

/// A connection to the system bus.
struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    signals: VecDeque<Message>,
}

/// What arrived, as far as anybody here wants to know.
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    /// The member of a signal, the name of an error.
    name: String,
    body: Vec<u8>,
}

impl Bus {
    fn connect() -> Result<Bus> {
        let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let path = address.strip_prefix("unix:path=").and_then(|rest| rest.split([',', ';']).next());
        let path = path.unwrap_or(SYSTEM_BUS);
        let unreachable = |e: std::io::Error| {
            let error = Error::from_io(format_args!("connect to the system bus at {path}"), e);
            error.with_kind(Kind::Unsupported).with_hint("use --cgroup-manager cgroupfs")
        };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)))?;
        let mut bus = Bus { stream: BufReader::new(stream), serial: 0, signals: VecDeque::new() };
        bus.authenticate()?;
        bus.call::<_, String>(&BUS, "Hello", &())?;
        Ok(bus)
    }

    /// EXTERNAL: the bus knows by the socket who this is, and is told the same.
    fn authenticate(&mut self) -> Result<()> {
        // The user id in decimal, and its digits in hexadecimal. Nobody but root comes here.
        self.send(b"\0AUTH EXTERNAL 30\r\n")?;
        let mut answer = String::new();
        self.stream.by_ref().take(512).read_line(&mut answer).map_err(broken)?;
        if !answer.starts_with("OK ") {
            let message = format!("log in to the system bus: it answers {:?}", answer.trim_end());
            return Err(Error::new(Kind::Permission, message));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Calls a method and waits for what it returns.
    fn call<B: Serialize + Type, A: DeserializeOwned + Type>(
        &mut self,
        object: &Object,
        member: &str,
        body: &B,
    ) -> Result<A> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&encode(serial, object, member, body)?)?;
        loop {
            let message = self.receive()?;
            match message.kind {
                SIGNAL => self.signals.push_back(message),
                _ if message.reply_to != Some(serial) => {}
                ERROR => return Err(refusal(member, &message)),
                _ => return decode(&message.body),
            }
        }
    }

    /// The arguments of the next signal of this name.
    fn next_signal<A: DeserializeOwned + Type>(&mut self, member: &str) -> Result<A> {
        loop {
            let message = match self.signals.pop_front() {
                Some(signal) => signal,
                None => self.receive()?,
            };
            if message.kind == SIGNAL && message.name == member {
                return decode(&message.body);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).map_err(broken)
    }

    fn receive(&mut self) -> Result<Message> {
        let mut header = vec![0; 16];
        self.stream.read_exact(&mut header).map_err(broken)?;
        let [body, fields] = lengths(&header)?;
        // The fields are an array behind its own length, and the body begins at a multiple of eight.
        header.resize(16 + fields.next_multiple_of(8), 0);
        self.stream.read_exact(&mut header[16..]).map_err(broken)?;
        let mut body = vec![0; body];
        self.stream.read_exact(&mut body).map_err(broken)?;
        message(&header, body)
    }
}

/// The lengths of body and fields in the first 16 bytes of a message.
fn lengths(start: &[u8]) -> Result<[usize; 2]> {
    let number = |at: usize| {
        let bytes: [u8; 4] = start[at..at + 4].try_into().unwrap_or_default();
        usize::try_from(u32::from_le_bytes(bytes)).ok().filter(|length| *length <= LONGEST)
    };
    // Whoever sends chooses the byte order, and everybody on this host chooses its own.
    match (start[0], number(4), number(12)) {
        (b'l', Some(body), Some(fields)) => Ok([body, fields]),
        _ => Err(garbled()),
    }
}

fn message(header: &[u8], body: Vec<u8>) -> Result<Message> {
    let data = Data::new(header, Context::new(LE, 0));
    let ((_, kind, _, _, _, _, fields), _): (Header<'_>, usize) = data.deserialize().map_err(|_| garbled())?;
    let mut message = Message { kind, reply_to: None, name: String::new(), body };
    for (code, value) in fields {
        match code {
            REPLY_SERIAL => message.reply_to = u32::try_from(&value).ok(),
            MEMBER | ERROR_NAME => message.name = <&str>::try_from(&value).unwrap_or_default().to_string(),
            _ => {}
        }
    }
    Ok(message)
}

/// A call's message.
fn encode<B: Serialize + Type>(serial: u32, object: &Object, member: &str, body: &B) -> Result<Vec<u8>> {
    let context = Context::new(LE, 0);
    let unencodable = |e: zbus::wire::Error| Error::new(Kind::Invalid, format!("call {member}: {e}"));
    let body_bytes = to_bytes(context, body).map_err(unencodable)?;
    let Object(destination, path, interface) = *object;
    let path = ObjectPath::try_from(path).map_err(|e| Error::new(Kind::Invalid, format!("call {member}: {e}")))?;
    let fields: Vec<(u8, Variant<'_>)> = vec![
        (PATH, Variant::from(path)),
        (INTERFACE, Variant::from(interface)),
        (MEMBER, Variant::from(member)),
        (DESTINATION, Variant::from(destination)),
    ];
    let length = u32::try_from(body_bytes.bytes().len()).unwrap_or(u32::MAX);
    let header: Header<'_> = (b'l', CALL, 0, 1, length, serial, fields);
    let mut bytes = to_bytes(context, &header).map_err(unencodable)?.bytes().to_vec();
    if !body_bytes.bytes().is_empty() {
        add_signature(&mut bytes, &B::SIGNATURE.to_string_no_parens());
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend_from_slice(body_bytes.bytes());
    Ok(bytes)
}

/// Adds the field with the body's signature to a header. By hand: a message has a list of arguments, and a signature that
/// is a value of the crate's is one complete type, so that it would put parentheses around the list.
fn add_signature(header: &mut Vec<u8>, signature: &str) {
    header.resize(header.len().next_multiple_of(8), 0);
    let length = u8::try_from(signature.len()).unwrap_or(u8::MAX);
    header.extend_from_slice(&[SIGNATURE, 1, b'g', 0, length]);
    header.extend_from_slice(signature.as_bytes());
    header.push(0);
    let fields = u32::try_from(header.len() - 16).unwrap_or(u32::MAX);
    header[12..16].copy_from_slice(&fields.to_le_bytes());
}

fn decode<A: DeserializeOwned + Type>(body: &[u8]) -> Result<A> {
    let data = Data::new(body, Context::new(LE, 0));
    data.deserialize().map(|(value, _)| value).map_err(|_| garbled())
}

/// An error that was answered: its name, and the first argument in words.
fn refusal(member: &str, message: &Message) -> Error {
    let words: String = decode(&message.body).unwrap_or_default();
    let name = message.name.as_str();
    let error = |kind| Error::new(kind, format!("call systemd's {member}: {words} ({name})"));
    match name {
        "org.freedesktop.systemd1.UnitExists" => error(Kind::AlreadyExists),
        "org.freedesktop.systemd1.NoSuchUnit" => error(Kind::NotFound),
        "org.freedesktop.DBus.Error.AccessDenied" => error(Kind::Permission),
        "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner" => {
            error(Kind::Unsupported).with_hint("use --cgroup-manager cgroupfs")
        }
        _ => error(Kind::Io),
    }
}

fn broken(e: std::io::Error) -> Error {
    Error::from_io("talk to the system bus", e)
}

fn garbled() -> Error {
    Error::new(Kind::Io, "talk to the system bus: a message that makes no sense")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first message on every connection, byte by byte as the specification draws it.
    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let bytes = encode(1, &BUS, "Hello", &()).expect("it encodes");
        let mut expected = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0".to_vec();
        expected.extend(b"\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0");
        expected.extend(b"\x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
        expected.extend(b"\x03\x01s\0\x05\0\0\0Hello\0\0\0");
        expected.extend(b"\x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_scope_is_asked_for_with_its_properties() {
        let property = |name, value| Property { name, value };
        let all = [
            property("PIDs", Value::Processes(vec![7])),
            property("Slice", Value::Text("machine.slice".into())),
            property("Delegate", Value::Flag(true)),
            property("MemoryMax", Value::Number(5)),
            property("AllowedCPUs", Value::Set(vec![3])),
            property("IOReadBandwidthMax", Value::Rates(vec![("/dev/sda".into(), 9)])),
        ];
        let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = ("tupper-a.scope", "fail", all.iter().map(pair).collect::<Vec<_>>(), none);
        let bytes = encode(2, &SYSTEMD, "StartTransientUnit", &body).expect("it encodes");
        let [body, fields] = lengths(&bytes).expect("lengths");
        let start = 16 + fields.next_multiple_of(8);
        assert_eq!(bytes.len(), start + body);
        let data = Data::new(&bytes[..start], Context::new(LE, 0));
        let (header, _): (Header<'_>, usize) = data.deserialize().expect("a header");
        let signature = header.6.iter().find(|(code, _)| *code == SIGNATURE).expect("a signature");
        assert!(zbus::Signature::try_from(&signature.1).is_ok_and(|s| s.to_string_no_parens() == "ssa(sv)a(sa(sv))"));
        let raw = b"\x08\x01g\0\x10ssa(sv)a(sa(sv))\0";
        assert!(bytes[..start].windows(raw.len()).any(|window| window == raw), "without parentheses around all of it");
        type Units = Vec<(String, Vec<(String, zbus::OwnedVariant)>)>;
        let (unit, mode, properties, others): (String, String, Vec<(String, zbus::OwnedVariant)>, Units) =
            decode(&bytes[start..]).expect("a body");
        assert_eq!((unit.as_str(), mode.as_str(), others.len()), ("tupper-a.scope", "fail", 0));
        let signatures: Vec<(String, String)> =
            properties.iter().map(|(name, value)| (name.clone(), value.value_signature().to_string())).collect();
        for (found, expected) in signatures.iter().zip([
            ("PIDs", "au"),
            ("Slice", "s"),
            ("Delegate", "b"),
            ("MemoryMax", "t"),
            ("AllowedCPUs", "ay"),
            ("IOReadBandwidthMax", "a(st)"),
        ]) {
            assert_eq!((found.0.as_str(), found.1.as_str()), expected);
        }
        assert_eq!(signatures.len(), all.len());
    }

    #[test]
    fn what_arrives_is_read_by_its_fields() {
        let fields: Vec<(u8, Variant<'_>)> = vec![
            (REPLY_SERIAL, Variant::from(3u32)),
            (ERROR_NAME, Variant::from("org.freedesktop.systemd1.UnitExists")),
        ];
        let header: Header<'_> = (b'l', ERROR, 1, 1, 0, 9, fields);
        let bytes = to_bytes(Context::new(LE, 0), &header).expect("it encodes");
        let words = to_bytes(Context::new(LE, 0), &"it is there").expect("it encodes").bytes().to_vec();
        let message = message(bytes.bytes(), words).expect("a message");
        assert_eq!((message.kind, message.reply_to), (ERROR, Some(3)));
        let error = refusal("StartTransientUnit", &message);
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert!(error.to_string().contains("it is there"), "{error}");
        assert!(lengths(b"B\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0").is_err(), "another byte order");
        assert!(lengths(&[b'l', 1, 0, 1, 255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0]).is_err(), "4 GiB");
    }
}
