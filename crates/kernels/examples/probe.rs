use std::time::Instant;
use wels_kernels::gemm::*;
fn main() {
    let shapes = [
        (2048usize, 256usize, 768usize),
        (2048, 768, 256),
        (2048, 256, 256),
        (2048, 256, 384),
        (2048, 256, 80),
        (2048, 64, 512),
        (2048, 256, 4096),
        (2048, 2048, 2048),
    ];
    for p in [Precision::F32, Precision::Bf16] {
        for (t, k, n) in shapes {
            let x = vec![0.5f32; t * k];
            let w = vec![0.25f32; n * k];
            let mut y = vec![0.0f32; t * n];
            let dy = vec![0.1f32; t * n];
            let mut dx = vec![0.0f32; t * k];
            let mut dw = vec![0.0f32; n * k];
            let flops = 2.0 * (t * k * n) as f64;
            let mut best = [f64::MAX; 3];
            for _ in 0..((2e10 / flops) as usize).clamp(5, 40) {
                let s = Instant::now();
                linear(p, &x, &w, &mut y, k, n);
                best[0] = best[0].min(s.elapsed().as_secs_f64());
                let s = Instant::now();
                linear_dx(p, &dy, &w, &mut dx, k, n, Start::Zero);
                best[1] = best[1].min(s.elapsed().as_secs_f64());
                let s = Instant::now();
                linear_dw(p, &dy, &x, &mut dw, k, n, Start::Zero);
                best[2] = best[2].min(s.elapsed().as_secs_f64());
            }
            println!(
                "{p:?} {t}x{k}x{n}: fwd {:.1} dx {:.1} dw {:.1} GF/s",
                flops / best[0] / 1e9,
                flops / best[1] / 1e9,
                flops / best[2] / 1e9
            );
        }
        // experts: 32 of 256 rows, 256->192
        let (e, k, n, s) = (32usize, 256usize, 192usize, 8192usize);
        let offsets: Vec<u32> = (0..=e as u32).map(|i| i * (s / e) as u32).collect();
        let rows: Vec<u32> = (0..s as u32).map(|i| (i * 769) % 2048).collect();
        let (x, w, dy) = (vec![0.5f32; 2048 * k], vec![0.1f32; e * n * k], vec![0.1f32; s * n]);
        let (mut y, mut dx, mut dw) = (vec![0f32; s * n], vec![0f32; s * k], vec![0f32; e * n * k]);
        let flops = 2.0 * (s * k * n) as f64;
        let mut best = [f64::MAX; 3];
        for _ in 0..20 {
            let t = Instant::now();
            grouped_linear(p, &x, Some(&rows), &offsets, &w, &mut y, k, n);
            best[0] = best[0].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            grouped_linear_dx(p, &dy, &offsets, &w, &mut dx, k, n, Start::Zero);
            best[1] = best[1].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            grouped_linear_dw(p, &dy, &x, Some(&rows), &offsets, &mut dw, k, n, Start::Zero);
            best[2] = best[2].min(t.elapsed().as_secs_f64());
        }
        println!(
            "{p:?} experts: fwd {:.1} dx {:.1} dw {:.1} GF/s",
            flops / best[0] / 1e9,
            flops / best[1] / 1e9,
            flops / best[2] / 1e9
        );
    }
}
