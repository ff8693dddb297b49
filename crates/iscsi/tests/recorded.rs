//! Recordings of `captures/`, cut into PDUs.

use polypath_iscsi::login::text::pairs;
use polypath_iscsi::pdu::{BHS_LEN, DEFAULT_MAX_RECV_DATA_LEN, Framing, Header, MAX_DATA_LEN, Opcode, Pdu, Role};
use std::path::Path;

/// One PDU as it was recorded.
pub(crate) struct Recorded {
    pub(crate) header: Header,
    pub(crate) framing: Framing,
    pub(crate) octets: Vec<u8>,
}

impl Recorded {
    pub(crate) fn bhs(&self) -> &[u8; BHS_LEN] {
        self.octets.first_chunk().unwrap()
    }

    pub(crate) fn pdu(&self) -> Pdu {
        Pdu::parse(&self.header, self.bhs()).unwrap_or_else(|e| panic!("{}: {e}", self.header.opcode))
    }

    pub(crate) fn head(&self) -> &[u8] {
        &self.octets[..self.header.head_len()]
    }

    pub(crate) fn tail(&self) -> &[u8] {
        &self.octets[self.header.head_len()..]
    }

    pub(crate) fn data(&self) -> &[u8] {
        &self.tail()[..self.header.data_len() as usize]
    }

    /// Its text, where its data are text.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        pairs(self.data()).unwrap()
    }
}

/// Both directions of one TCP connection.
pub(crate) struct Connection {
    pub(crate) name: String,
    pub(crate) initiator: Vec<Recorded>,
    pub(crate) target: Vec<Recorded>,
}

impl Connection {
    fn read(name: String, initiator: &[u8], target: &[u8]) -> Self {
        let has = |needle: &[u8]| target.windows(needle.len()).any(|w| w == needle);
        let framing =
            Framing { header_digest: has(b"HeaderDigest=CRC32C\0"), data_digest: false, max_data_len: MAX_DATA_LEN };
        Connection {
            initiator: split(initiator, Role::Initiator, &framing, &name),
            target: split(target, Role::Target, &framing, &name),
            name,
        }
    }

    /// The login: its requests and its answers.
    pub(crate) fn login(&self) -> (Vec<&Recorded>, Vec<&Recorded>) {
        let of = |all: &'_ [Recorded], opcode| all.iter().take_while(|p| p.header.opcode == opcode).count();
        (
            self.initiator[..of(&self.initiator, Opcode::LoginRequest)].iter().collect(),
            self.target[..of(&self.target, Opcode::LoginResponse)].iter().collect(),
        )
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Recorded> {
        self.initiator.iter().chain(&self.target)
    }
}

fn split(octets: &[u8], from: Role, negotiated: &Framing, name: &str) -> Vec<Recorded> {
    let (mut pdus, mut rest) = (Vec::new(), octets);
    while let Some(b) = rest.first_chunk::<BHS_LEN>() {
        let login = matches!(b[0] & 0x3f, 0x03 | 0x23);
        let framing = if login { Framing::LOGIN } else { *negotiated };
        let at = octets.len() - rest.len();
        let header = Header::parse(b, from, &framing).unwrap_or_else(|e| panic!("{name} at {at}: {e}"));
        let len = header.head_len() + header.tail_len();
        let (pdu, after) = rest.split_at_checked(len).expect("a recording ends with a whole PDU");
        pdus.push(Recorded { header, framing, octets: pdu.to_vec() });
        rest = after;
    }
    assert!(rest.is_empty(), "{name}: {} bytes are left over", rest.len());
    pdus
}

/// The recordings of this name.
pub(crate) fn capture(name: &str) -> Vec<Connection> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name);
    let read = |way: &str, n: usize| std::fs::read(folder.join(format!("{way}.{n}.bin")));
    let mut all = Vec::new();
    while let Ok(initiator) = read("initiator-to-target", all.len()) {
        let target = read("target-to-initiator", all.len()).unwrap();
        all.push(Connection::read(format!("{name} connection {}", all.len()), &initiator, &target));
    }
    assert!(!all.is_empty(), "{name} holds no connection");
    all
}

/// Every recording.
pub(crate) fn captures() -> Vec<Connection> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 9, "recordings are missing: {names:?}");
    names.iter().flat_map(|name| capture(name)).collect()
}

/// What tgt takes in one data segment, which it does not declare.
pub(crate) const TGT_TAKES: u32 = DEFAULT_MAX_RECV_DATA_LEN;
