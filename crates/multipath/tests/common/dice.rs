//! Numbers that a seed decides, and the story of what came of them.

/// Throws by a seed, and remembers what is noted, for whoever has to find out what happened.
pub struct Dice {
    random: u64,
    pub step: u64,
    story: Vec<String>,
}

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice { random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, step: 0, story: Vec::new() }
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as usize % n
    }

    pub fn note(&mut self, what: String) {
        self.story.push(format!("{}: {what}", self.step));
    }

    /// All that was noted, a line each.
    pub fn story(&self) -> String {
        self.story.join("\n")
    }

    pub fn fail(&self, why: &str) -> ! {
        panic!("{why}\n{}", self.story());
    }
}
