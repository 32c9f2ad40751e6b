//! Repeats one hot piece a number of times and says nothing: `scripts/instructions` runs it under callgrind, twice with different numbers,
//! so that what the piece's preparation costs falls out of the difference.
//!
//!   instructions --list | NAME TIMES

mod pieces;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("the name of a piece, or --list")?;
    if name == "--list" {
        for (name, _) in pieces::PIECES {
            println!("{name}");
        }
        return Ok(());
    }
    let times: u32 = arguments.next().context("how often")?.parse()?;
    let (_, prepare) = pieces::PIECES.iter().find(|(known, _)| *known == name).context("there is no such piece")?;
    let mut step = prepare()?;
    for _ in 0..times {
        step()?;
    }
    Ok(())
}
