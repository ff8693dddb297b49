//! Numbers that a seed decides, and the story of what came of them.

/// Tries `count` seeds, or those that the environment names: each can be tried alone again.
pub fn each_seed(count: u64, mut attempt: impl FnMut(u64)) {
    let number = |name, other| std::env::var(name).map_or(other, |s| s.parse().expect(name));
    let from = number("FROM", 1);
    for seed in from..from + number("SEEDS", count) {
        println!("seed {seed}; alone: FROM={seed} SEEDS=1");
        attempt(seed);
    }
}

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
