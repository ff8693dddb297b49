//! The initiator's side.

use super::*;
use crate::login::text::Text;
use crate::login::value::to_hexadecimal;

/// What an initiator needs to prove who it is, and to have the target prove it.
#[derive(Debug, Clone)]
pub struct ChapInitiator {
    user: Credentials,
    target: Option<(Credentials, Challenge)>,
    algorithms: Vec<Algorithm>,
    chosen: Algorithm,
}

impl ChapInitiator {
    /// One-way: only the initiator proves itself.
    ///
    /// # Errors
    /// [`ChapError`]: a name that cannot be sent.
    pub fn one_way(user: Credentials) -> Result<Self, ChapError> {
        ChapInitiator::new(user, None)
    }

    /// Mutual: the target proves itself, too, as `target`, by answering `challenge`.
    ///
    /// # Errors
    /// [`ChapError`]: a name that cannot be sent, the same secret both ways, a challenge that is too short.
    pub fn mutual(user: Credentials, target: Credentials, challenge: Challenge) -> Result<Self, ChapError> {
        challenge.check()?;
        if user.secret == target.secret {
            return Err(ChapError::SameSecret(user.name, target.name));
        }
        ChapInitiator::new(user, Some((target, challenge)))
    }

    fn new(user: Credentials, target: Option<(Credentials, Challenge)>) -> Result<Self, ChapError> {
        let chap = ChapInitiator { user, target, algorithms: Algorithm::PREFERENCE.to_vec(), chosen: Algorithm::Md5 };
        check_all(&chap.credentials())?;
        Ok(chap)
    }

    /// Offers only these algorithms, best first.
    ///
    /// # Errors
    /// [`ChapError::NoneAllowed`] for none.
    pub fn with_algorithms(mut self, algorithms: &[Algorithm]) -> Result<Self, ChapError> {
        if algorithms.is_empty() {
            return Err(ChapError::NoneAllowed);
        }
        self.algorithms = algorithms.to_vec();
        Ok(self)
    }

    /// What is worth a line in a log.
    pub fn notes(&self) -> Vec<Note> {
        check_all(&self.credentials()).unwrap_or_default()
    }

    /// Whether the target is to prove itself.
    pub fn is_mutual(&self) -> bool {
        self.target.is_some()
    }

    /// The algorithm that was chosen; MD5 before that.
    pub fn algorithm(&self) -> Algorithm {
        self.chosen
    }

    fn credentials(&self) -> Vec<&Credentials> {
        std::iter::once(&self.user).chain(self.target.as_ref().map(|(target, _)| target)).collect()
    }

    /// Step 1: the algorithms.
    pub(crate) fn offer(&self, text: &mut Text) {
        let codes: Vec<String> = self.algorithms.iter().map(|a| (*a as u8).to_string()).collect();
        text.add("CHAP_A", &codes.join(","));
    }

    /// Step 3: the response to the target's challenge, and a challenge of ours when mutual.
    pub(crate) fn respond(&mut self, pairs: &[(&str, &str)], text: &mut Text) -> Result<(), LoginError> {
        only(pairs, &["CHAP_A", "CHAP_I", "CHAP_C"])?;
        let code = required(pairs, "CHAP_A")?;
        let chosen = number(code).and_then(Algorithm::from_code).filter(|a| self.algorithms.contains(a));
        self.chosen = chosen.ok_or_else(|| ChapError::AlgorithmNotOffered(code.chars().take(80).collect()))?;
        let theirs = Challenge::read(pairs)?;
        if self.target.as_ref().is_some_and(|(_, ours)| same(&ours.octets, &theirs.octets)) {
            return Err(ChapError::Reflected.into());
        }
        text.add("CHAP_N", &self.user.name);
        let response = self.chosen.response(theirs.identifier, &self.user.secret, &theirs.octets);
        text.add("CHAP_R", &to_hexadecimal(&response));
        if let Some((_, ours)) = &self.target {
            text.add("CHAP_I", &ours.identifier.to_string());
            text.add("CHAP_C", &to_hexadecimal(&ours.octets));
        }
        Ok(())
    }

    /// After step 4: whether the target proved itself, where it was to.
    pub(crate) fn verify(&self, pairs: &[(&str, &str)]) -> Result<(), LoginError> {
        let Some((target, challenge)) = &self.target else {
            return only(pairs, &[]);
        };
        only(pairs, &["CHAP_N", "CHAP_R"])?;
        let found = required(pairs, "CHAP_N")?;
        let response = read_response(pairs)?;
        let wanted = self.chosen.response(challenge.identifier, &target.secret, &challenge.octets);
        if !same(&wanted, &response) {
            return Err(ChapError::WrongTargetResponse.into());
        }
        if found != target.name {
            let (expected, found) = (target.name.clone(), found.to_owned());
            return Err(ChapError::WrongTargetName { expected, found }.into());
        }
        Ok(())
    }
}
