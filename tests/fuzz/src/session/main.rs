//! One client connection, driven by a script of bytes in which everything may happen at any moment.
//!
//! The first byte says who speaks: a client and a RabbitMQ that keep to the protocol (and then the session must keep to
//! it as well: see `honest.rs`), or two that send whatever the script has (`hostile.rs`).

#![no_main]

#[path = "../memory.rs"]
mod memory;

mod broker;
mod client;
mod honest;
mod hostile;
mod login;
mod script;
mod stream;

use libfuzzer_sys::fuzz_target;
use script::Script;

fuzz_target!(|data: &[u8]| {
    let mut fed = 0;
    let peak = memory::peak(|| {
        let mut script = Script::new(data);
        fed = if script.flag() { hostile::run(&mut script) } else { honest::run(&mut script) };
    });
    assert!(peak <= (512 << 10) + 100 * (fed + data.len()), "{peak} bytes were held for {fed} bytes");
});
