//! The target's side.

use super::*;
use crate::login::text::Text;
use crate::login::value::to_hexadecimal;

/// What a target needs to have an initiator prove who it is, and to prove it itself. Good for one login: the challenge is used up.
#[derive(Debug, Clone)]
pub struct ChapTarget {
    users: Vec<Credentials>,
    own: Option<Credentials>,
    algorithms: Vec<Algorithm>,
    challenge: Challenge,
    chosen: Algorithm,
}

impl ChapTarget {
    /// Lets in whoever proves to be one of `users`; `own` is what the target proves itself with when asked to.
    ///
    /// # Errors
    /// [`ChapError`]: a name that cannot be sent, the same secret both ways, a challenge that is too short.
    pub fn new(users: Vec<Credentials>, own: Option<Credentials>, challenge: Challenge) -> Result<Self, ChapError> {
        challenge.check()?;
        let chap =
            ChapTarget { users, own, algorithms: Algorithm::PREFERENCE.to_vec(), challenge, chosen: Algorithm::Md5 };
        check_all(&chap.credentials())?;
        let shared = |own: &Credentials| chap.users.iter().find(|user| user.secret == own.secret);
        if let Some((own, user)) = chap.own.as_ref().and_then(|own| Some((own, shared(own)?))) {
            return Err(ChapError::SameSecret(user.name.clone(), own.name.clone()));
        }
        Ok(chap)
    }

    /// Accepts only these algorithms; which of them is used is for the initiator to say by its order.
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

    /// The algorithm that was chosen; MD5 before that.
    pub fn algorithm(&self) -> Algorithm {
        self.chosen
    }

    fn credentials(&self) -> Vec<&Credentials> {
        self.users.iter().chain(&self.own).collect()
    }

    /// Step 2: takes the first algorithm of the initiator that we accept, and sends the challenge.
    pub(crate) fn challenge(&mut self, pairs: &[(&str, &str)], text: &mut Text) -> Result<(), LoginError> {
        only(pairs, &["CHAP_A"])?;
        let offered = required(pairs, "CHAP_A")?;
        let known = offered.split(',').filter_map(number).filter_map(Algorithm::from_code);
        let chosen = known.into_iter().find(|algorithm| self.algorithms.contains(algorithm));
        self.chosen = chosen.ok_or_else(|| ChapError::NoCommonAlgorithm(offered.chars().take(80).collect()))?;
        text.add("CHAP_A", &(self.chosen as u8).to_string());
        text.add("CHAP_I", &self.challenge.identifier.to_string());
        text.add("CHAP_C", &to_hexadecimal(&self.challenge.octets));
        Ok(())
    }

    /// Step 4: checks the initiator's response, and gives ours where it asks for one. Says whether it did.
    pub(crate) fn verify(&self, pairs: &[(&str, &str)], text: &mut Text) -> Result<bool, LoginError> {
        only(pairs, &["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"])?;
        let name = required(pairs, "CHAP_N")?;
        let response = read_response(pairs)?;
        let user = self.users.iter().find(|user| user.name == name);
        // the hash is computed for a name that nobody has, too, so that the time does not tell which names there are
        let nobody = Secret::new([]);
        let secret = user.map_or(&nobody, |user| &user.secret);
        let wanted = self.chosen.response(self.challenge.identifier, secret, &self.challenge.octets);
        if !(same(&wanted, &response) & user.is_some()) {
            return Err(ChapError::WrongResponse.into());
        }
        if find(pairs, "CHAP_I").is_none() && find(pairs, "CHAP_C").is_none() {
            return Ok(false);
        }
        let theirs = Challenge::read(pairs)?;
        if same(&theirs.octets, &self.challenge.octets) {
            return Err(ChapError::Reflected.into());
        }
        let own = self.own.as_ref().ok_or(ChapError::NoTargetSecret)?;
        text.add("CHAP_N", &own.name);
        let response = self.chosen.response(theirs.identifier, &own.secret, &theirs.octets);
        text.add("CHAP_R", &to_hexadecimal(&response));
        Ok(true)
    }
}
