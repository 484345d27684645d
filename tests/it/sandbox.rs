//! The sandbox on a real kernel: what a command inside sees, and that nothing outside notices.
