//! An error and its causes, for people.

use core::error::Error;
use core::fmt;

/// Displays an error and its causes on one line, each said once: many an error's own sentence ends with its cause already.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("bind failed: {source}")]
        Bind { source: std::io::Error },
        #[error("no daemon")]
        Daemon { source: Box<Failure> },
    }

    #[test]
    fn what_a_sentence_ends_with_is_not_said_again() {
        let source = std::io::Error::other("permission denied");
        let error = Failure::Daemon { source: Box::new(Failure::Bind { source }) };
        assert_eq!(Chain(&error).to_string(), "no daemon: bind failed: permission denied");
    }
}
