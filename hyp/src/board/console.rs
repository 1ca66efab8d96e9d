//! The console's UART: the PL011 that `stdout-path` names.

use guest_dts::finding::{Finding, Rule};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Tree};

use super::interrupt::{self, Interrupt};

/// A PL011.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// The UART's registers.
    pub registers: PaRange,
    /// The combined interrupt, which includes the receive interrupt.
    pub interrupt: Interrupt,
    /// Clock of the baud rate generator in Hz, if the tree has it.
    pub clock_hz: Option<u32>,
    /// Baud rate in the options of `stdout-path`.
    pub baud: Option<u32>,
}

const WHAT: Rule = Rule::Required("path or alias of the console's PL011");

impl Console {
    /// Reads the UART that `stdout-path` in `/chosen` names.
    ///
    /// # Errors
    /// `stdout-path` is missing, or does not name a PL011 that can be used.
    #[inline(never)]
    pub fn read<'t>(tree: &Tree<'t>) -> Result<Self, Finding<'t>> {
        let (node, options) = named(tree)?;
        let registers = registers(node)?;
        let interrupts = interrupt::read(node)?;
        let Some(&interrupt) = interrupts.first() else {
            return Err(Finding::missing(node, "interrupts", Rule::Required("the UART's interrupt")));
        };
        if !interrupt.is_spi()
            && let Some(property) =
                node.property("interrupts-extended").or_else(|| node.property("interrupts"))
        {
            let rule = Rule::Must(
                "be a shared interrupt of type 0 (SPI) for the console's UART: private and extended ones are not taken",
            );
            return Err(Finding::property(node, property, rule));
        }
        Ok(Self { registers, interrupt, clock_hz: clock_hz(node), baud: baud(options) })
    }

    /// Returns a PL011 other than the console's, for the log.
    #[inline(never)]
    pub fn second(&self, tree: &Tree<'_>) -> Option<Self> {
        let others = tree.nodes().filter_map(|node| Some((node, registers(node).ok()?)));
        let (node, registers) = others.into_iter().find(|(_, registers)| *registers != self.registers)?;
        Some(Self { registers, interrupt: self.interrupt, clock_hz: clock_hz(node), baud: None })
    }

    /// Returns the registers of a UART for early messages: of the one that `stdout-path` names, else of the first PL011 (to
    /// report a missing `stdout-path`).
    pub fn any(tree: &Tree<'_>) -> Option<PaRange> {
        let named = named(tree).and_then(|(node, _)| registers(node));
        named.ok().or_else(|| tree.nodes().find_map(|node| registers(node).ok()))
    }
}

/// Returns the node that `stdout-path` names, and the options after the name.
fn named<'t>(tree: &Tree<'t>) -> Result<(Node<'t>, &'t str), Finding<'t>> {
    let Some(chosen) = tree.find("/chosen") else { return Err(Finding::no_node("/chosen", WHAT)) };
    let path = chosen.property("stdout-path").or_else(|| chosen.property("linux,stdout-path"));
    let Some(path) = path else { return Err(Finding::missing(chosen, "stdout-path", WHAT)) };
    let wrong = |what| Finding::property(chosen, path, Rule::Must(what));
    let text = path.str().ok_or_else(|| wrong("be one string"))?;
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let node = tree.find(name).ok_or_else(|| wrong("name a node by its path or its alias"))?;
    Ok((node, options))
}

/// Returns the registers of a PL011.
#[inline(never)]
fn registers<'t>(node: Node<'t>) -> Result<PaRange, Finding<'t>> {
    // An SBSA UART is a PL011 without baud rate registers; its rate is then not set.
    if !node.is_compatible("arm,pl011") && !node.is_compatible("arm,sbsa-uart") {
        let rule = Rule::Must("list \"arm,pl011\" or \"arm,sbsa-uart\": the console's UART");
        return Err(match node.property("compatible") {
            Some(property) => Finding::property(node, property, rule),
            None => Finding::missing(node, "compatible", rule),
        });
    }
    if !node.is_enabled() {
        let rule = Rule::Must("be \"okay\": it is the console's UART");
        return Err(match node.property("status") {
            Some(status) => Finding::property(node, status, rule),
            None => Finding::missing(node, "status", rule),
        });
    }
    let registers = node.cpu_reg::<2>()?;
    let range = registers.first().and_then(|reg| PaRange::from_numbers(reg.base, reg.size));
    // The identification registers end at 0x1000 (PL011 TRM, 3.2).
    let range = range.filter(|range| range.size() >= 0x1000 && range.base().is_aligned(0x1000));
    range.ok_or_else(|| {
        let rule = Rule::Must("begin with a page of 4 KiB below 2^48");
        match node.property("reg") {
            Some(property) => Finding::property(node, property, rule),
            None => Finding::missing(node, "reg", rule),
        }
    })
}

/// Returns the baud rate in options such as `115200n8`.
fn baud(options: &str) -> Option<u32> {
    let end = options.find(|character: char| !character.is_ascii_digit()).unwrap_or(options.len());
    options.get(..end)?.parse().ok()
}

/// Returns the frequency of the first clock if that is a fixed clock.
#[inline(never)]
fn clock_hz(node: Node<'_>) -> Option<u32> {
    if let Some(frequency) = node.property("clock-frequency") {
        return frequency.u32();
    }
    let phandle = node.property("clocks")?.cells()?.next()?;
    let clock = node.tree_root().descendants().find(|clock| clock.phandle() == Some(phandle))?;
    if !clock.is_compatible("fixed-clock") {
        return None;
    }
    clock.property("clock-frequency")?.u32()
}
