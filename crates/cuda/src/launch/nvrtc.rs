//! Kernels from text to machine code, by NVRTC. It needs neither a card nor a driver.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use super::libraries;
use crate::Unavailable;
use crate::kernels::{HEADERS, Source};

/// The compiler.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc {
    /// (12, 9).
    pub version: (i32, i32),
}

/// What it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// (9, 0).
    pub capability: (u32, u32),
}

impl Target {
    /// Its name among the compiler's options; with what only this generation has, where it has something.
    pub fn name(&self) -> String {
        let (major, minor) = self.capability;
        let own = if self.capability == (9, 0) { "a" } else { "" };
        format!("sm_{major}{minor}{own}")
    }

    /// Whether its cards can run the kernels of a file.
    pub fn runs(&self, source: &Source) -> bool {
        self.capability.0 * 10 + self.capability.1 >= source.since
    }
}

/// Machine code, and what the assembler says of registers and spills if it was asked.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The file that the driver loads.
    pub cubin: Vec<u8>,
    /// The compiler's words.
    pub log: String,
}

/// Options for every file. Products and sums are not contracted: the kernels write the fused ones that they mean.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--device-as-default-execution-space"];

impl Nvrtc {
    /// Loads the compiler.
    pub fn open() -> Result<Nvrtc, Unavailable> {
        if !libraries::nvrtc_is_present() {
            return Err(Unavailable::Nvrtc { looked: libraries::nvrtc().looked.clone() });
        }
        let mut version = (0, 0);
        // SAFETY: the library is there, and both places are written to.
        let result = unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) };
        match result {
            nvrtcResult::NVRTC_SUCCESS => Ok(Nvrtc { version }),
            other => Err(Unavailable::Failed { reason: format!("nvrtcVersion gave {other:?}") }),
        }
    }

    /// Compiles a file; with `report`, the log says what each kernel takes. The error is the compiler's.
    pub fn compile(&self, source: &Source, target: Target, report: bool) -> Result<Compiled, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{} has a zero", source.path));
        let headers = HEADERS.iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>, _>>()?;
        let names = HEADERS.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let program = Program::new(&text(source.text)?, &text(source.path)?, &headers, &names)?;
        let mut options: Vec<String> = OPTIONS.iter().map(ToString::to_string).collect();
        options.push(format!("--gpu-architecture={}", target.name()));
        if report {
            options.push("--ptxas-options=-v".to_string());
        }
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        match program.compile(&options) {
            Ok(()) => Ok(Compiled { cubin: program.cubin()?, log: program.log() }),
            Err(error) => Err(format!("{error} for {}: {}", target.name(), program.log().trim())),
        }
    }
}

/// A program of the compiler's, destroyed when dropped.
struct Program(nvrtcProgram);

fn check(call: &str, result: nvrtcResult) -> Result<(), String> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(format!("{call} gave {other:?}")),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

impl Program {
    fn new(text: &CStr, name: &CStr, headers: &[CString], names: &[CString]) -> Result<Program, String> {
        let (mut program, headers, names) = (ptr::null_mut(), pointers(headers), pointers(names));
        let count = headers.len() as i32;
        // SAFETY: an `Nvrtc` is there, so the library is; all strings end with zeros and outlive the call, which copies
        // them; both lists have `count` of them.
        let result = unsafe {
            let (headers, names) = (headers.as_ptr(), names.as_ptr());
            sys::nvrtcCreateProgram(&mut program, text.as_ptr(), name.as_ptr(), count, headers, names)
        };
        check("nvrtcCreateProgram", result).map(|()| Program(program))
    }

    fn compile(&self, options: &[CString]) -> Result<(), String> {
        let options = pointers(options);
        // SAFETY: the program is alive; the strings end with zeros and outlive the call.
        let result = unsafe { sys::nvrtcCompileProgram(self.0, options.len() as i32, options.as_ptr()) };
        check("nvrtcCompileProgram", result)
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program is alive, and the size is written to its place.
        check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(self.0, &mut len) })?;
        let mut cubin = vec![0; len];
        // SAFETY: there is room for as many bytes as the program has said.
        check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }

    fn log(&self) -> String {
        let mut len = 0;
        // SAFETY: the program is alive, and the size is written to its place.
        if check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut len) }).is_err() {
            return String::new();
        }
        let mut log = vec![0u8; len];
        // SAFETY: there is room for as many bytes as the program has said.
        let result = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        match check("nvrtcGetProgramLog", result) {
            Ok(()) => String::from_utf8_lossy(&log).trim_end_matches('\0').to_string(),
            Err(error) => error,
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and nobody has it any more.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// What a kernel takes of a multiprocessor, as the assembler reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Of a thread.
    pub registers: usize,
    /// Bytes of a thread's stack.
    pub stack_bytes: usize,
    /// Bytes stored and loaded for want of registers.
    pub spill_bytes: usize,
}

impl Compiled {
    /// Of all kernels, if a report was asked for.
    pub fn usage(&self) -> Vec<Usage> {
        let mut all = Vec::new();
        let mut kernel = String::new();
        let (mut stack_bytes, mut spill_bytes) = (0, 0);
        for line in self.log.lines() {
            if let Some((_, rest)) = line.split_once("entry function '") {
                kernel = rest.split('\'').next().unwrap_or_default().to_string();
            } else if line.contains("bytes stack frame") {
                stack_bytes = number_before(line, " bytes stack frame");
                spill_bytes = number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            } else if line.contains(" registers") && line.contains("Used ") {
                let registers = number_before(line, " registers");
                all.push(Usage { kernel: std::mem::take(&mut kernel), registers, stack_bytes, spill_bytes });
            }
        }
        all
    }
}

fn number_before(line: &str, words: &str) -> usize {
    let before = line.split_once(words).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'one' for 'sm_90a'\n\
            ptxas info    : Function properties for one\n\
            8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 380 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'two' for 'sm_90a'\n\
            ptxas info    : Function properties for two\n\
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 168 registers\n";
        let compiled = Compiled { cubin: Vec::new(), log: log.to_string() };
        let usage = |kernel: &str, registers, stack_bytes, spill_bytes| Usage {
            kernel: kernel.to_string(),
            registers,
            stack_bytes,
            spill_bytes,
        };
        assert_eq!(compiled.usage(), [usage("one", 40, 8, 16), usage("two", 168, 0, 0)]);
    }

    #[test]
    fn hopper_is_compiled_for_with_what_only_it_has() {
        let name = |capability| Target { capability }.name();
        assert_eq!([name((8, 0)), name((8, 9)), name((9, 0)), name((10, 0))], ["sm_80", "sm_89", "sm_90a", "sm_100"]);
    }
}
