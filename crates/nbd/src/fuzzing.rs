//! Bodies of the fuzz targets, here so that `cargo test` replays a committed corpus. Not an interface.

use crate::handshake::{Answer, Ask, Handshake, Next, Offer};
use crate::session::fuzz_check;
use crate::wire::option::{CLIENT_FLAGS_LEN, parse_export_name};
use crate::wire::{ClientFlags, ContextRequest, ExportRequest, OptionHeader, Request, TransmissionFlags};

/// Every decoder on its own.
pub fn nbd_decoders(data: &[u8]) {
    let _ = ClientFlags::parse(data);
    if let Ok(header) = OptionHeader::parse(data) {
        assert_eq!(&header.to_bytes()[..], data);
    }
    if let Ok(name) = parse_export_name(data) {
        assert_eq!(name.as_bytes(), data);
    }
    if let Ok(request) = ExportRequest::parse(data) {
        assert!(request.wanted.len() <= 4);
    }
    if let Ok(request) = ContextRequest::parse(data) {
        assert!(request.queries.len() * 4 <= data.len());
    }
    transmission(data);
}

/// A request, and whether it may be carried out.
fn transmission(data: &[u8]) {
    if let Ok(request) = Request::parse(data) {
        assert_eq!(&request.to_bytes()[..], data);
        fuzz_check(&request);
    }
}

/// A whole handshake: what a client says, cut as the server reads it.
pub fn nbd_handshake(data: &[u8]) {
    let mut handshake = Handshake::new();
    let offer = Offer {
        name: "disk".into(),
        description: "a disk".into(),
        size: 1 << 30,
        flags: TransmissionFlags::HAS_FLAGS,
        smallest: 512,
        preferred: 4096,
        largest: 32 << 20,
    };
    let (mut rest, mut next) = (data, Next::More(CLIENT_FLAGS_LEN));
    loop {
        let answered = match next {
            Next::More(len) => {
                assert!(len > 0 && len == handshake.wants());
                let Some((now, later)) = rest.split_at_checked(len) else { return };
                rest = later;
                handshake.take(now)
            }
            Next::Ask(Ask::List) => handshake.answer(Answer::List(vec![("disk".into(), String::new())])),
            Next::Ask(Ask::Export(name)) if name.is_empty() || name == "disk" => {
                handshake.answer(Answer::Export(offer.clone()))
            }
            Next::Ask(Ask::Export(name)) if name == "end" => handshake.answer(Answer::Shutdown),
            Next::Ask(Ask::Export(_)) => handshake.answer(Answer::Unknown("none".into())),
            Next::Go(agreed) => {
                assert!(agreed.structured || !agreed.allocation);
                return;
            }
            Next::End => return,
        };
        // What one option makes it say: some strings at most.
        assert!(handshake.output().len() < 64 << 10);
        match answered {
            Ok(then) => next = then,
            Err(error) => {
                let _ = error.to_string();
                return;
            }
        }
    }
}
