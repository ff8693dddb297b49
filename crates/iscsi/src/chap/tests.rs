//! Known answers, and what is refused.

use super::*;
use crate::login::text::{Text, pairs};
use crate::login::value::{to_base64, to_hexadecimal};

fn credentials(name: &str, secret: &str) -> Credentials {
    Credentials { name: name.into(), secret: Secret::new(secret) }
}

fn challenge(identifier: u8, octet: u8) -> Challenge {
    Challenge { identifier, octets: vec![octet; GOOD_CHALLENGE_LEN] }
}

fn octets(hex: &str) -> Vec<u8> {
    binary(&format!("0x{hex}"), 1024).unwrap()
}

#[test]
fn known_answers() {
    // Identifier 27h, secret "opaque-secret-16", challenge 00 01 .. 1f; computed with Python's hashlib:
    // hashlib.new(H, bytes([0x27]) + b"opaque-secret-16" + bytes(range(32))).hexdigest()
    let table = [
        (Algorithm::Md5, "9ab468f4ca07527d866f4f59d1973dbb"),
        (Algorithm::Sha1, "24e786b026a3eb3ef8e88bdebc99cbda91f2513b"),
        (Algorithm::Sha256, "f43399b5467e4a5dbc9f234d64e1e5fd0b31d6b8994b603076620657b1be7084"),
        (Algorithm::Sha3_256, "eca71d0bd292e4870bc96ca097113252d735f28a956eb9d264f8f9d2c46ba921"),
    ];
    let rising: Vec<u8> = (0..32).collect();
    for (algorithm, want) in table {
        let response = algorithm.response(0x27, &Secret::new("opaque-secret-16"), &rising);
        assert_eq!(response, octets(want), "{algorithm}");
        assert_eq!(response.len(), algorithm.response_len());
        assert_eq!(Algorithm::from_code(algorithm as u32), Some(algorithm));
    }
    // RFC 1321 appendix A.5, FIPS 180-4 and FIPS 202: the hashes of "abc", here cut into identifier, secret and challenge
    let abc = [
        (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (Algorithm::Sha3_256, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
    ];
    for (algorithm, want) in abc {
        assert_eq!(algorithm.response(b'a', &Secret::new("b"), b"c"), octets(want), "{algorithm}");
    }
    assert_eq!((0..256).filter(|n| Algorithm::from_code(*n).is_some()).collect::<Vec<_>>(), [5, 6, 7, 8]);
}

/// Both sides, step by step; `change` may alter what travels in step 2, 3 or 4.
fn run(
    initiator: &mut ChapInitiator,
    target: &mut ChapTarget,
    change: impl Fn(u8, &str) -> String,
) -> Result<bool, LoginError> {
    let send = |step, text: Text| change(step, &String::from_utf8(text.into_octets()).unwrap()).into_bytes();
    let mut text = Text::new();
    initiator.offer(&mut text);
    let offer = send(1, text);
    let mut text = Text::new();
    target.challenge(&pairs(&offer)?, &mut text)?;
    let challenge = send(2, text);
    let mut text = Text::new();
    initiator.respond(&pairs(&challenge)?, &mut text)?;
    let response = send(3, text);
    let mut text = Text::new();
    let mutual = target.verify(&pairs(&response)?, &mut text)?;
    let proof = send(4, text);
    initiator.verify(&pairs(&proof)?)?;
    Ok(mutual)
}

fn as_it_is(_: u8, text: &str) -> String {
    text.into()
}

fn one_way() -> ChapInitiator {
    ChapInitiator::one_way(credentials("user", "secret of user")).unwrap()
}

fn mutual() -> ChapInitiator {
    let target = credentials("target", "secret of target");
    ChapInitiator::mutual(credentials("user", "secret of user"), target, challenge(9, 0x99)).unwrap()
}

fn target() -> ChapTarget {
    let users = vec![credentials("other", "another secret"), credentials("user", "secret of user")];
    ChapTarget::new(users, Some(credentials("target", "secret of target")), challenge(7, 0x77)).unwrap()
}

#[test]
fn whoever_knows_the_secret_gets_in_with_every_algorithm() {
    for algorithm in Algorithm::PREFERENCE {
        for (mut initiator, is_mutual) in [(one_way(), false), (mutual(), true)] {
            assert_eq!(initiator.is_mutual(), is_mutual);
            initiator = initiator.with_algorithms(&[algorithm]).unwrap();
            assert_eq!(run(&mut initiator, &mut target(), as_it_is), Ok(is_mutual));
            // either side may have the only algorithm
            let mut only_here = target().with_algorithms(&[algorithm]).unwrap();
            let mut any = mutual();
            assert_eq!(run(&mut any, &mut only_here, as_it_is), Ok(true));
            assert_eq!((any.algorithm(), only_here.algorithm()), (algorithm, algorithm));
        }
    }
    // the initiator's order decides
    let mut initiator = one_way().with_algorithms(&[Algorithm::Sha1, Algorithm::Sha256]).unwrap();
    assert_eq!(run(&mut initiator, &mut target(), as_it_is), Ok(false));
    assert_eq!(initiator.algorithm(), Algorithm::Sha1);
    // and base64 is as good as hexadecimal digits
    let in_base64 = |_: u8, text: &str| {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, hex)) if hex.starts_with("0x") => format!("{key}={}\0", to_base64(&binary(hex, 1024).unwrap())),
            _ => format!("{pair}\0"),
        };
        text.split_terminator('\0').map(pair).collect()
    };
    assert_eq!(run(&mut mutual(), &mut target(), in_base64), Ok(true));
}

#[test]
fn whoever_does_not_know_it_does_not_get_in() {
    let failed = |initiator: Result<ChapInitiator, ChapError>, target: Result<ChapTarget, ChapError>| {
        run(&mut initiator.unwrap(), &mut target.unwrap(), as_it_is).expect_err("must fail")
    };
    let wrong = ChapInitiator::one_way(credentials("user", "Secret of user"));
    assert_eq!(failed(wrong, Ok(target())), ChapError::WrongResponse.into());
    let stranger = ChapInitiator::one_way(credentials("User", "secret of user"));
    assert_eq!(failed(stranger, Ok(target())), ChapError::WrongResponse.into());
    let nothing = ChapInitiator::one_way(credentials("nobody", ""));
    assert_eq!(failed(nothing, Ok(target())), ChapError::WrongResponse.into());
    let users = || vec![credentials("user", "secret of user")];
    let no_secret = ChapTarget::new(users(), None, challenge(7, 0x77));
    assert_eq!(failed(Ok(mutual()), no_secret), ChapError::NoTargetSecret.into());
    let impostor = ChapTarget::new(users(), Some(credentials("target", "guessed")), challenge(7, 0x77));
    assert_eq!(failed(Ok(mutual()), impostor), ChapError::WrongTargetResponse.into());
    let renamed = ChapTarget::new(users(), Some(credentials("Target", "secret of target")), challenge(7, 0x77));
    let error = failed(Ok(mutual()), renamed).to_string();
    assert!(error.contains(r#"calls itself "Target", expected "target""#), "{error}");
    let md5_only = target().with_algorithms(&[Algorithm::Md5]);
    let sha_only = one_way().with_algorithms(&[Algorithm::Sha1, Algorithm::Sha256]);
    assert_eq!(failed(sha_only, md5_only), ChapError::NoCommonAlgorithm("6,7".into()).into());
}

#[test]
fn tricks_do_not_work() {
    let swap = |step: u8, from: &'static str, to: &'static str| {
        move |now: u8, text: &str| if now == step { text.replace(from, to) } else { text.into() }
    };
    // the target's challenge given back as the initiator's, so that the target computes its own answer
    let theirs = to_hexadecimal(&[0x77; 32]);
    let ours = to_hexadecimal(&[0x99; 32]);
    let reflect = |step: u8| {
        let (theirs, ours) = (theirs.clone(), ours.clone());
        move |now: u8, text: &str| match now {
            _ if now != step => text.to_owned(),
            2 => text.replace(&theirs, &ours),
            _ => text.replace(&ours, &theirs),
        }
    };
    for step in [2, 3] {
        assert_eq!(run(&mut mutual(), &mut target(), reflect(step)), Err(ChapError::Reflected.into()), "step {step}");
    }
    let text_of = |error: Result<bool, LoginError>| error.expect_err("must fail").to_string();
    // an algorithm that was not offered, no number, or several
    for (to, words) in [("CHAP_A=5", "not offered"), ("CHAP_A=9", "not offered"), ("CHAP_A=8,7", "not offered")] {
        let mut sha = one_way().with_algorithms(&[Algorithm::Sha3_256]).unwrap();
        assert!(text_of(run(&mut sha, &mut target(), swap(2, "CHAP_A=8", to))).contains(words));
    }
    // no proof although one was asked for, or one that nobody asked for
    let nothing = |step: u8, text: &str| if step == 4 { String::new() } else { text.into() };
    assert_eq!(run(&mut mutual(), &mut target(), nothing), Err(LoginError::Missing("CHAP_N")));
    let gift = |step: u8, text: &str| if step == 4 { "CHAP_N=target\0CHAP_R=0x00\0".into() } else { text.to_owned() };
    assert!(text_of(run(&mut one_way(), &mut target(), gift)).contains("no place"));
    // a response cut short or empty
    for response in ["CHAP_R=0x\0", "CHAP_R=0x00\0", "CHAP_R=0b\0"] {
        let cut = |step: u8, text: &str| if step == 3 { format!("CHAP_N=user\0{response}") } else { text.into() };
        assert_eq!(run(&mut one_way(), &mut target(), cut), Err(ChapError::WrongResponse.into()));
    }
    // octets that are none
    let table = [
        (2, "CHAP_I=7", "CHAP_I=256", "CHAP_I=256 is not legal"),
        (2, "CHAP_C=0x", "CHAP_C=0x0", "expected 1 to 1024 octets"),
        (2, "CHAP_C=0x", "CHAP_X=0x", "CHAP_X has no place"),
        (2, "CHAP_I=7\0", "", "CHAP_I is missing"),
        (3, "CHAP_R=0x", "CHAP_R=", "CHAP_R="),
        (3, "CHAP_N=user\0", "", "CHAP_N is missing"),
        (3, "CHAP_I=9\0", "", "CHAP_I is missing"),
        (1, "CHAP_A", "CHAP_N", "CHAP_N has no place"),
    ];
    for (step, from, to, words) in table {
        let error = text_of(run(&mut mutual(), &mut target(), swap(step, from, to)));
        assert!(error.contains(words), "{from:?} for {to:?}: {error}");
    }
}

#[test]
fn what_is_configured_is_checked() {
    let (a, b) = (credentials("a", "same secret!"), credentials("b", "same secret!"));
    let same_secret = ChapError::SameSecret("a".into(), "b".into());
    assert_eq!(ChapInitiator::mutual(a.clone(), b.clone(), challenge(1, 2)).unwrap_err(), same_secret);
    assert_eq!(ChapTarget::new(vec![a.clone()], Some(b), challenge(1, 2)).unwrap_err(), same_secret);
    for len in [0, 15, 1025] {
        let short = Challenge { identifier: 1, octets: vec![1; len] };
        assert_eq!(ChapTarget::new(vec![a.clone()], None, short).unwrap_err(), ChapError::OwnChallenge(len));
    }
    for name in ["", "a\0b", &"x".repeat(256)] {
        assert_eq!(ChapInitiator::one_way(credentials(name, "s")).unwrap_err(), ChapError::BadName(name.into()));
    }
    assert_eq!(one_way().with_algorithms(&[]).unwrap_err(), ChapError::NoneAllowed);
    assert_eq!(target().with_algorithms(&[]).unwrap_err(), ChapError::NoneAllowed);
    // 12 octets are 96 bits
    assert_eq!(ChapInitiator::one_way(a).unwrap().notes(), []);
    let notes = ChapInitiator::one_way(credentials("a", "eleven char")).unwrap().notes();
    assert_eq!(notes, [Note::ShortSecret { name: "a".into(), bits: 88 }]);
    assert!(notes[0].to_string().contains("88 bits"));
    assert_eq!(target().notes(), []);
}

#[test]
fn nothing_of_a_secret_is_shown() {
    let secret = Secret::new("xyzzy");
    let shown = format!("{secret:?} {:?} {:?} {:?}", mutual(), target(), credentials("n", "xyzzy"));
    for word in ["xyzzy", "secret of", "120, 121"] {
        assert!(!shown.contains(word), "{shown}");
    }
}
