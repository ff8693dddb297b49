use super::*;
use proptest::prelude::*;

const REPLY: u64 = crate::wire::option::OPTION_REPLY_MAGIC;

fn offer() -> Offer {
    Offer {
        name: "disk".into(),
        description: "a disk".into(),
        size: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        smallest: 512,
        preferred: 4096,
        largest: 32 << 20,
    }
}

/// A client and who answers for the exports: one, "disk", which is also the default.
struct Talk {
    handshake: Handshake,
    next: Next,
}

/// What came of one option.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// Type and data of each reply.
    replies: Vec<(u32, Vec<u8>)>,
    next: Next,
}

impl Talk {
    fn begin(client_flags: u32) -> Talk {
        let mut handshake = Handshake::new();
        assert_eq!(handshake.output(), GREETING);
        let next = handshake.take(&client_flags.to_be_bytes()).unwrap();
        Talk { handshake, next }
    }

    fn structured() -> Talk {
        let mut talk = Talk::begin(3);
        assert_eq!(talk.say(OptionType::StructuredReply, &[]).replies, [(1, vec![])]);
        talk
    }

    /// Sends an option and hears all of the answer.
    fn say(&mut self, option: OptionType, data: &[u8]) -> Said {
        self.try_say(option, data).unwrap()
    }

    fn try_say(&mut self, option: OptionType, data: &[u8]) -> Result<Said, HandshakeError> {
        assert_eq!(self.next, Next::More(OPTION_HEADER_LEN));
        let header = OptionHeader { option, length: data.len() as u32 }.to_bytes();
        self.next = self.handshake.take(&header)?;
        let mut rest = data;
        while let Next::More(len) = self.next
            && !rest.is_empty()
        {
            let (now, later) = rest.split_at(len);
            self.next = self.handshake.take(now)?;
            rest = later;
        }
        if let Next::Ask(ask) = &self.next {
            let answer = match ask {
                Ask::List => Answer::List(vec![("disk".into(), "a disk".into()), ("other".into(), String::new())]),
                Ask::Export(name) if name.is_empty() || name == "disk" => Answer::Export(offer()),
                Ask::Export(name) if name == "end" => Answer::Shutdown,
                Ask::Export(_) => Answer::Unknown("none".into()),
            };
            self.next = self.handshake.answer(answer)?;
        }
        Ok(Said { replies: replies(&self.handshake.output(), option), next: self.next.clone() })
    }
}

fn replies(mut octets: &[u8], option: OptionType) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    while !octets.is_empty() {
        assert_eq!(octets[..8], REPLY.to_be_bytes());
        assert_eq!(octets[8..12], option.code().to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(octets[at..at + 4].try_into().unwrap());
        let end = 20 + word(16) as usize;
        all.push((word(12), octets[20..end].to_vec()));
        octets = &octets[end..];
    }
    all
}

fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn export(name: &str, wanted: &[u16]) -> Vec<u8> {
    let wanted_octets = wanted.iter().flat_map(|kind| kind.to_be_bytes());
    counted(name).into_iter().chain((wanted.len() as u16).to_be_bytes()).chain(wanted_octets).collect()
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = (queries.len() as u32).to_be_bytes();
    counted(name).into_iter().chain(count).chain(queries.iter().flat_map(|query| counted(query))).collect()
}

const MORE: Next = Next::More(OPTION_HEADER_LEN);
const UNSUPPORTED: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const SHUTDOWN: u32 = 0x8000_0007;
const TOO_BIG: u32 = 0x8000_0009;

#[test]
fn export_name_takes_an_export_or_ends() {
    for (flags, padding) in [(1, 124), (0, 124), (3, 0)] {
        let mut talk = Talk::begin(flags);
        let header = OptionHeader { option: OptionType::ExportName, length: 4 }.to_bytes();
        assert_eq!(talk.handshake.take(&header), Ok(Next::More(4)));
        assert_eq!(talk.handshake.take(b"disk"), Ok(Next::Ask(Ask::Export("disk".into()))));
        let agreed = Agreed { structured: false, allocation: false };
        assert_eq!(talk.handshake.answer(Answer::Export(offer())), Ok(Next::Go(agreed)));
        let out = talk.handshake.output();
        assert_eq!(out.len(), 10 + padding);
        assert_eq!(out[..10], [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 5]);
    }
    for (name, why) in [("none", "none"), ("end", "ends")] {
        let error = Talk::begin(3).try_say(OptionType::ExportName, name.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Talk::begin(3).try_say(OptionType::ExportName, &[b'x'; 4097]).is_err());
    assert!(Talk::begin(3).try_say(OptionType::ExportName, &[0xff]).is_err());
    let long = OptionHeader { option: OptionType::ExportName, length: OPTION_MAX + 1 }.to_bytes();
    assert!(matches!(Talk::begin(3).handshake.take(&long), Err(HandshakeError::TooLong { .. })));
}

#[test]
fn exports_are_listed() {
    let mut talk = Talk::begin(3);
    let one = [&counted("disk")[..], b"a disk"].concat();
    let said = talk.say(OptionType::List, &[]);
    assert_eq!(said, Said { replies: vec![(2, one), (2, counted("other")), (1, vec![])], next: MORE });
    assert_eq!(talk.say(OptionType::List, b"x").replies[0].0, INVALID);
    assert_eq!(talk.say(OptionType::Abort, b"good bye").next, Next::End);
}

#[test]
fn info_tells_and_go_takes() {
    let size = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &5_u16.to_be_bytes()].concat();
    let blocks = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0].to_vec();
    for (option, next) in
        [(OptionType::Info, MORE), (OptionType::Go, Next::Go(Agreed { structured: false, allocation: false }))]
    {
        // A kind that nobody knows, and one twice.
        let said = Talk::begin(3).say(option, &export("", &[3, 1, 2, 99, 3, 0]));
        let told = [size.clone(), blocks.clone(), b"\0\x01disk".to_vec(), b"\0\x02a disk".to_vec()];
        let expected = told.map(|data| (3, data)).into_iter().chain([(1, vec![])]).collect::<Vec<_>>();
        assert_eq!(said, Said { replies: expected, next: next.clone() });
        let bare = Talk::begin(3).say(option, &export("disk", &[]));
        assert_eq!(bare, Said { replies: vec![(3, size.clone()), (1, vec![])], next });
        for (data, error) in [
            (export("none", &[]), UNKNOWN),
            (export("end", &[]), SHUTDOWN),
            (vec![], INVALID),
            (vec![0xff; 6], INVALID),
            (export("disk", &[])[..9].to_vec(), INVALID),
        ] {
            let said = Talk::begin(3).say(option, &data);
            assert_eq!((said.replies.len(), said.replies[0].0, said.next), (1, error, MORE.clone()), "{data:?}");
        }
    }
}

#[test]
fn structured_replies_bring_df() {
    let mut talk = Talk::structured();
    let said = talk.say(OptionType::Go, &export("disk", &[]));
    assert_eq!(said.next, Next::Go(Agreed { structured: true, allocation: false }));
    assert_eq!(said.replies[0].1[10..], (5_u16 | 1 << 7).to_be_bytes());
    assert_eq!(Talk::begin(3).say(OptionType::StructuredReply, b"x").replies[0].0, INVALID);
}

#[test]
fn what_is_not_known_is_refused_and_the_rest_goes_on() {
    let mut talk = Talk::begin(1);
    for option in [OptionType::StartTls, OptionType::Other(4), OptionType::Other(11), OptionType::Other(u32::MAX)] {
        for data in [&b""[..], b"whatever"] {
            let said = talk.say(option, data);
            assert_eq!((said.replies.len(), said.replies[0].0, said.next), (1, UNSUPPORTED, MORE), "{option:?}");
        }
    }
    assert_eq!(talk.say(OptionType::Abort, &[]), Said { replies: vec![(1, vec![])], next: Next::End });
}

#[test]
fn contexts_are_listed_and_chosen() {
    let listed = |id: u32| (4, [&id.to_be_bytes()[..], ALLOCATION.as_bytes()].concat());
    let ack = (1, vec![]);
    let long = "x-y:".to_owned() + &"z".repeat(4092);
    let all: [(&[&str], bool, bool); 6] = [
        (&[], true, false),
        (&["base:"], true, false),
        (&["base:allocation"], true, true),
        (&["qemu:dirty-bitmap:a", "base:allocation", "base:allocation"], true, true),
        (&["base:other", "nonsense", ""], false, false),
        (&[&long], false, false),
    ];
    for (queries, is_listed, is_set) in all {
        let mut talk = Talk::structured();
        let data = contexts("disk", queries);
        let expected = |any: bool, id| if any { vec![listed(id), ack.clone()] } else { vec![ack.clone()] };
        assert_eq!(talk.say(OptionType::ListMetaContext, &data).replies, expected(is_listed, 0), "{queries:?}");
        assert_eq!(talk.say(OptionType::SetMetaContext, &data).replies, expected(is_set, 1), "{queries:?}");
        // The default export is the same one.
        let said = talk.say(OptionType::Go, &export("", &[]));
        assert_eq!(said.next, Next::Go(Agreed { structured: true, allocation: is_set }));
    }
}

#[test]
fn contexts_are_lost_with_the_next_choice_and_not_without_structured_replies() {
    let choice = contexts("disk", &[ALLOCATION]);
    for (data, error) in [
        (contexts("none", &[ALLOCATION]), UNKNOWN),
        (choice[..choice.len() - 1].to_vec(), INVALID),
        ([&choice[..], b"x"].concat(), INVALID),
        (vec![], INVALID),
    ] {
        let mut talk = Talk::structured();
        assert_eq!(talk.say(OptionType::SetMetaContext, &choice).replies.len(), 2);
        assert_eq!(talk.say(OptionType::SetMetaContext, &data).replies[0].0, error, "{data:?}");
        let said = talk.say(OptionType::Go, &export("disk", &[]));
        assert_eq!(said.next, Next::Go(Agreed { structured: true, allocation: false }));
    }
    for option in [OptionType::SetMetaContext, OptionType::ListMetaContext] {
        assert_eq!(Talk::begin(3).say(option, &choice).replies[0].0, INVALID);
    }
}

#[test]
fn what_is_too_long_is_passed_over_or_ends_it() {
    let mut talk = Talk::begin(3);
    for option in [OptionType::Info, OptionType::Other(77), OptionType::List] {
        let said = talk.say(option, &vec![0x55; OPTION_MAX as usize + 1]);
        assert_eq!((said.replies.len(), said.replies[0].0, said.next), (1, TOO_BIG, MORE), "{option:?}");
    }
    assert_eq!(talk.say(OptionType::Info, &export("disk", &[])).replies[1].0, 1, "it goes on");
    for length in [SKIP_MAX + 1, u32::MAX] {
        let header = OptionHeader { option: OptionType::Info, length }.to_bytes();
        assert_eq!(Talk::begin(3).handshake.take(&header), Err(HandshakeError::TooLong { length }));
    }
}

#[test]
fn nobody_asks_for_ever() {
    let mut talk = Talk::begin(3);
    for _ in 0..OPTIONS_MAX {
        talk.say(OptionType::Other(77), &[]);
    }
    assert_eq!(talk.try_say(OptionType::Other(77), &[]), Err(HandshakeError::TooMany));
}

#[test]
fn other_protocols_are_let_go() {
    let mut handshake = Handshake::new();
    assert!(matches!(handshake.take(b"GET "), Err(HandshakeError::Wire(WireError::ClientFlags { .. }))));
    let garbage = Talk::begin(3).handshake.take(b"GET / HTTP/1.1\r\n");
    assert!(matches!(garbage, Err(HandshakeError::Wire(WireError::Magic { .. }))));
}

#[test]
fn octets_and_answers_that_nobody_asked_for() {
    let misused = Err(HandshakeError::Misused);
    assert_eq!(Handshake::new().take(&[0; 5]), misused);
    assert_eq!(Handshake::new().answer(Answer::Shutdown), misused);
    let mut talk = Talk::begin(3);
    talk.handshake.take(&OptionHeader { option: OptionType::List, length: 0 }.to_bytes()).unwrap();
    assert_eq!(talk.handshake.wants(), 0);
    assert_eq!(talk.handshake.answer(Answer::Export(offer())), misused);
}

proptest! {
    #[test]
    fn whatever_is_said_is_heard_to_its_end(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzzing::nbd_handshake(&octets);
    }

    #[test]
    fn options_in_any_order(all in proptest::collection::vec((0_u32..12, proptest::collection::vec(0_u8..6, 0..24)), 0..20)) {
        let mut octets = 3_u32.to_be_bytes().to_vec();
        for (option, data) in all {
            let option = OptionType::from_code(option);
            octets.extend(OptionHeader { option, length: data.len() as u32 }.to_bytes());
            octets.extend(data);
        }
        crate::fuzzing::nbd_handshake(&octets);
    }
}
