//! `convert OUTPUT LAYER...`: layer blobs, lowest first, to an image.

use std::ops::ControlFlow;
use std::path::PathBuf;

use supermachine_image::{Layer, Limits, convert};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let output = arguments.next().ok_or("usage: convert OUTPUT LAYER...")?;
    let mut layers = Vec::new();
    for path in arguments {
        let length = path.metadata()?.len();
        layers.push(Layer { path, offset: 0, length, digest: None, diff_id: None, compression: None });
    }
    let summary = convert(&layers, &output, &Limits::default(), &mut |_| ControlFlow::Continue(()))?;
    println!("{summary:#?}");
    Ok(())
}
