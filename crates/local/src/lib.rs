//! Placeholder head.

