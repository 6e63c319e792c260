//! Keys while no line is edited: they are not shown, and kept for the next line.

use std::io;
#[cfg(unix)]
use std::time::Duration;

/// The terminal without echo, until this is dropped. Ctrl-C stays a signal.
pub struct Quiet {
    #[cfg(unix)]
    before: rustix::termios::Termios,
    typed: Vec<u8>,
}

#[cfg(unix)]
impl Quiet {
    pub fn begin() -> io::Result<Quiet> {
        use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
        quiet.input_modes -= InputModes::ICRNL;
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin, OptionalActions::Now, &quiet)?;
        Ok(Quiet { before, typed: Vec::new() })
    }

    /// What comes within `wait`, or `None`.
    fn read(wait: Duration) -> io::Result<Option<Vec<u8>>> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stdin = rustix::stdio::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut ready, Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 256];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => Ok(Some(buffer[..read].to_vec())),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// One key, typed from now on: what was typed before is for the next line, and answers nothing. `None`: `stop` says
    /// so.
    pub fn key(&mut self, stop: &dyn Fn() -> bool) -> io::Result<Option<char>> {
        self.keep()?;
        while !stop() {
            if let Some(bytes) = Self::read(Duration::from_millis(100))? {
                return Ok(String::from_utf8_lossy(&bytes).chars().next());
            }
        }
        Ok(None)
    }

    /// Keeps what has been typed.
    fn keep(&mut self) -> io::Result<()> {
        while let Some(bytes) = Self::read(Duration::ZERO)? {
            self.typed.extend(bytes);
        }
        Ok(())
    }

    /// What was typed, as text of a line, with the terminal as it was.
    pub fn end(mut self) -> String {
        let _ = self.keep(); // a terminal that is gone is noticed by the editor
        text_of(&String::from_utf8_lossy(&self.typed))
    }
}

#[cfg(unix)]
impl Drop for Quiet {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(not(unix))]
impl Quiet {
    pub fn begin() -> io::Result<Quiet> {
        Ok(Quiet { typed: Vec::new() })
    }

    /// A line's first letter.
    pub fn key(&mut self, stop: &dyn Fn() -> bool) -> io::Result<Option<char>> {
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        Ok(line.trim_start().chars().next().filter(|_| !stop()))
    }

    pub fn end(self) -> String {
        text_of(&String::from_utf8_lossy(&self.typed))
    }
}

/// What keys write: backspace takes back, Ctrl-U takes all back, other control keys and arrows write nothing.
fn text_of(keys: &str) -> String {
    let mut text = String::new();
    let mut keys = keys.chars().peekable();
    while let Some(key) = keys.next() {
        match key {
            '\u{7f}' | '\u{8}' => drop(text.pop()),
            '\u{15}' => text.clear(),
            '\r' | '\n' => text.push('\n'),
            '\u{1b}' => {
                // An arrow is ESC [ or ESC O, parameters, and a letter or ~.
                if keys.next_if(|c| *c == '[' || *c == 'O').is_some() {
                    while keys.next_if(|c| !matches!(c, '@'..='~')).is_some() {}
                }
                keys.next();
            }
            key if key.is_control() => {}
            key => text.push(key),
        }
    }
    text.trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::text_of;

    #[test]
    fn keys_become_the_text_that_they_would_have_written() {
        for (keys, text) in [
            ("next\r", "next"),
            ("one\rtwo", "one\ntwo"),
            ("abc\u{7f}d", "abd"),
            ("\u{7f}a", "a"),
            ("x\u{1b}[Ay\u{1b}[1;5Cz\u{1b}OP!", "xyz!"),
            ("wrong\u{15}right\t", "right"),
            ("\u{1b}xé", "é"),
        ] {
            assert_eq!(text_of(keys), text, "{keys:?}");
        }
    }
}
