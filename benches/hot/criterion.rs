//! How long the hot pieces take, for people who work on them: `cargo bench -p prompt-manager-bench`.

#![expect(clippy::expect_used, reason = "a piece that fails measures nothing")]

mod pieces;

use criterion::{Criterion, criterion_group, criterion_main};

fn hot(criterion: &mut Criterion) {
    for (name, prepare) in pieces::PIECES {
        let mut step = prepare().expect(name);
        criterion.bench_function(name, |bencher| bencher.iter(|| step().expect(name)));
    }
}

criterion_group!(benches, hot);
criterion_main!(benches);
