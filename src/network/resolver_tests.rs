use proptest::prelude::*;

use super::*;
use crate::name::Id;
use crate::network::MacAddress;

fn known() -> Known {
    let member = |number: u8, names: &[&str], servers: &[&str]| Member {
        id: Id::from_bytes([number; 32]),
        addresses: vec![IpAddr::from([10, 64, 0, number]), format!("fd00::{number}").parse().expect("one")],
        mac: MacAddress([2, 0, 0, 0, 0, number]),
        names: names.iter().map(ToString::to_string).collect(),
        ports: Vec::new(),
        servers: servers.iter().map(|text| text.parse().expect("one")).collect(),
    };
    Known { internal: false, members: vec![member(2, &["web", "www"], &[]), member(3, &["db", "web"], &["192.0.2.9"])] }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 77;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("it encodes")
}

/// What was answered: the code, and the data as text.
fn said(known: &Known, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    match answer(known, IpAddr::from([10, 64, 0, 2]), &question(name, kind)) {
        Answer::Known(bytes) => {
            let message = Message::from_vec(&bytes).expect("a message");
            assert_eq!((message.metadata.id, message.metadata.message_type), (77, MessageType::Response));
            let data = message.answers.iter().map(|record| record.data.to_string()).collect();
            (message.metadata.response_code, data)
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn members_are_known_by_their_names() {
    let known = known();
    let found = |name, kind| {
        let (code, data) = said(&known, name, kind);
        assert_eq!(code, ResponseCode::NoError, "{name}");
        data
    };
    assert_eq!(found("db.", RecordType::A), ["10.64.0.3"]);
    assert_eq!(found("DB.", RecordType::AAAA), ["fd00::3"]);
    assert_eq!(found("web.", RecordType::A), ["10.64.0.2", "10.64.0.3"], "two have that name");
    assert_eq!(found("db.", RecordType::MX), [""; 0], "it is there, but has none");
    assert_eq!(found("3.0.64.10.in-addr.arpa.", RecordType::PTR), ["db."]);
}

#[test]
fn others_are_asked_for_by_whom_a_member_names() {
    let known = known();
    let asked = |from: [u8; 4], name| answer(&known, IpAddr::from(from), &question(name, RecordType::A));
    assert_eq!(asked([10, 64, 0, 2], "example.org."), Answer::Ask(Vec::new()));
    assert_eq!(asked([10, 64, 0, 3], "example.org."), Answer::Ask(vec![IpAddr::from([192, 0, 2, 9])]));
    let internal = Known { internal: true, ..known };
    assert_eq!(said(&internal, "example.org.", RecordType::A), (ResponseCode::NXDomain, Vec::new()));
    assert_eq!(said(&internal, "db.", RecordType::A).1, ["10.64.0.3"]);
}

#[test]
fn what_is_no_question_is_not_answered() {
    let from = IpAddr::from([10, 64, 0, 2]);
    let mut reply = Message::from_vec(&question("db.", RecordType::A)).expect("a message");
    reply.metadata.message_type = MessageType::Response;
    assert_eq!(answer(&known(), from, &reply.to_vec().expect("it encodes")), Answer::Nothing);
    assert_eq!(answer(&known(), from, b""), Answer::Nothing);
    let mut two = Message::from_vec(&question("db.", RecordType::A)).expect("a message");
    two.add_query(Query::query(Name::from_ascii("web.").expect("a name"), RecordType::A));
    assert!(matches!(answer(&known(), from, &two.to_vec().expect("it encodes")), Answer::Known(_)));
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        answer(&known(), IpAddr::from([10, 64, 0, 2]), &bytes);
        refuse(&bytes);
    }
}
