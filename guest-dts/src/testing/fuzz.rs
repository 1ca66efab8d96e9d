//! A fuzzer for trees. It mutates known blobs and keeps inputs with new answers.
//!
//! The answer of the tested program, without numbers and names, serves as the measure of coverage: an input whose
//! answer is new is kept and mutated further. Runs with the same seed try the same inputs. The environment variables
//! `BALLAST_FUZZ_SECONDS` and `BALLAST_FUZZ_SEED` set the length of a run and its seed.

use std::collections::HashSet;
use std::path::Path;
use std::string::String;
use std::time::{Duration, Instant};
use std::vec::Vec;
use std::{format, fs};

/// Time limit for one input. It is generous, since tests run in parallel.
const LONGEST: Duration = Duration::from_secs(5);
/// Size limit of kept inputs.
const LARGEST: usize = 16 << 10;

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Number of inputs that were tried.
    pub tried_count: u64,
    /// Number of different answers.
    pub answer_count: usize,
    /// Inputs with a new answer, each with its answer.
    pub kept: Vec<(Vec<u8>, String)>,
}

/// Reads the blobs in `folder`, in the order of their names.
///
/// # Panics
/// The folder cannot be read or is empty.
pub fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).expect("a file of the corpus can be read")).collect()
}

/// Runs `target` on the inputs of `corpus` and on at least `least_count` mutations. `target` returns its answer to an
/// input.
///
/// # Panics
/// An input takes too long, or `target` panics. If `BALLAST_FUZZ_SAVE` names a folder, the input is left there.
pub fn run(corpus: &[Vec<u8>], least_count: u64, mut target: impl FnMut(&[u8]) -> String) -> Run {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut random = Random(number("BALLAST_FUZZ_SEED").unwrap_or(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let end = number("BALLAST_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let save = std::env::var("BALLAST_FUZZ_SAVE").ok();
    let mut answers = HashSet::new();
    let mut run = Run { tried_count: 0, answer_count: 0, kept: Vec::new() };
    let mut pool: Vec<Vec<u8>> = corpus.to_vec();
    let mut pending: Vec<Vec<u8>> = corpus.to_vec();
    while !pending.is_empty() || run.tried_count < least_count || end.is_some_and(|end| Instant::now() < end)
    {
        let input = pending.pop().unwrap_or_else(|| random.change(&pool));
        if let Some(folder) = &save {
            fs::write(Path::new(folder).join("last"), &input).expect("the folder can be written to");
        }
        let start = Instant::now();
        let answer = gist(&target(&input));
        assert!(start.elapsed() < LONGEST, "an input of {} bytes took {:?}", input.len(), start.elapsed());
        run.tried_count += 1;
        if input.len() <= LARGEST && answers.insert(answer.clone()) && run.tried_count > corpus.len() as u64 {
            pool.push(input.clone());
            run.kept.push((input, answer));
        }
    }
    run.answer_count = answers.len();
    run
}

/// Returns `answer` without digits and quoted text, which depend on the input rather than on the path through the
/// code.
fn gist(answer: &str) -> String {
    let mut gist = String::new();
    for (index, part) in answer.split('"').enumerate() {
        if index % 2 == 0 {
            gist.extend(part.chars().filter(|character| !character.is_ascii_hexdigit()));
        }
    }
    gist
}

/// Marsaglia's xorshift with a multiplication, good enough to choose mutations.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// Returns a word that is likely to be a special case.
    fn word(&mut self) -> u32 {
        let words = [0, 1, 2, 3, 4, 9, 0x10, 0xff, 0x1000, 0x20_0000, 0x4000_0000, 0x8000_0000, u32::MAX];
        match self.below(3) {
            0 => self.next() as u32,
            1 => self.below(64) as u32,
            _ => words[self.below(words.len())],
        }
    }

    /// Returns one of `pool` with one to four mutations.
    fn change(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(4) {
            if input.len() < 48 {
                return input;
            }
            match self.below(12) {
                0 => {
                    let at = self.below(input.len());
                    input[at] ^= 1 << self.below(8);
                }
                1 => {
                    let at = self.below(input.len());
                    input[at] = self.next() as u8;
                }
                2 => {
                    let field = self.below(10) * 4;
                    let word = self.word();
                    put(&mut input, field, word);
                }
                3 => input.truncate(self.below(input.len())),
                4..=6 => {
                    let at = self.below(input.len() / 4) * 4;
                    let word = self.word();
                    put(&mut input, at, word);
                }
                7 => {
                    let other = &pool[self.below(pool.len())];
                    self.replace_words(&mut input, other);
                }
                _ => self.change_structure(&mut input),
            }
        }
        input
    }

    /// Overwrites a few words of `input` with words of `other`.
    fn replace_words(&mut self, input: &mut [u8], other: &[u8]) {
        let words = 1 + self.below(8);
        let from = self.below(other.len().max(4) / 4) * 4;
        let to = self.below(input.len() / 4) * 4;
        for (target, source) in input.iter_mut().skip(to).zip(other.iter().skip(from)).take(words * 4) {
            *target = *source;
        }
    }

    /// Removes or duplicates words of the structure block, and corrects the header.
    fn change_structure(&mut self, input: &mut Vec<u8>) {
        let (total, structure, strings, size) =
            (word(input, 4), word(input, 8), word(input, 12), word(input, 36));
        let end = structure.saturating_add(size);
        if size < 8 || end > strings || strings > input.len() || total > input.len() {
            return;
        }
        let at = structure + self.below(size / 4) * 4;
        let length = ((1 + self.below(12)) * 4).min(end - at);
        let part: Vec<u8> = input[at..at + length].to_vec();
        let (change, size, total, strings) = (length as u32, size as u32, total as u32, strings as u32);
        let (new_size, new_total, new_strings) = if self.below(2) == 0 {
            input.drain(at..at + length);
            (size.wrapping_sub(change), total.wrapping_sub(change), strings.wrapping_sub(change))
        } else {
            let to = structure + self.below(size as usize / 4) * 4;
            input.splice(to..to, part);
            (size.wrapping_add(change), total.wrapping_add(change), strings.wrapping_add(change))
        };
        put(input, 4, new_total);
        put(input, 12, new_strings);
        put(input, 36, new_size);
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()) as usize)
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(bytes) = bytes.get_mut(at..at + 4) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
}

/// Writes the kept inputs, which are candidates for the corpus, into the folder that `BALLAST_FUZZ_SAVE` names.
pub fn save(run: &Run) {
    let Ok(folder) = std::env::var("BALLAST_FUZZ_SAVE") else { return };
    for (index, (input, answer)) in run.kept.iter().enumerate() {
        let path = Path::new(&folder).join(format!("{index:04}"));
        fs::write(&path, input).expect("the folder can be written to");
        fs::write(path.with_extension("txt"), answer).expect("the folder can be written to");
    }
    let summary = format!("{} tried, {} answers\n", run.tried_count, run.answer_count);
    fs::write(Path::new(&folder).join("summary"), &summary).expect("the folder can be written to");
}
