"""A training iteration at the paper's setting, ours beside the plain way:

    python -m benchmarks.training DAVIS [--runs 2]

B = 16, T = 5, 256² crops, N = 8, M = 4. Ours: bfloat16 autocast, channels last, losses on warped features.
Plain: float32, NCHW, losses on warped affinities. Each way runs in its own process, with its own peak memory.
"""

import argparse
import json
import time

import torch

from benchmarks.loss import plain as plain_loss
from benchmarks.measure import own_process, peak, report
from dulvos import encoder, losses, views
from dulvos.datasets import load_davis
from dulvos.objectives import Iteration, TrainSettings
from dulvos.training import make_clips, parameter_groups


def iteration(way: str, davis: str) -> dict:
    """Seconds of the second iteration, and the process's peak memory in MB."""
    settings = TrainSettings()
    dataset = make_clips(settings, [s.video for s in load_davis(davis, "train").sequences])
    net = encoder.Encoder().train()
    if way != "plain":
        net = net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(parameter_groups(net, settings), betas=(0.5, 0.999))
    times = []
    for number in range(2):  # the first one warms up
        started = time.perf_counter()
        batch = torch.stack([dataset[number * settings.batch + i] for i in range(settings.batch)])
        frames = encoder.prepare_frames(batch)
        generator = torch.Generator().manual_seed(number)
        optimiser.zero_grad()
        if way != "plain":
            Iteration(net, frames, settings, generator).loss().total.backward()
        else:
            similarity = views.sample_similarity(len(frames), settings.crop, generator)
            cells = settings.crop // encoder.STRIDE
            grids = [losses.sample_grid(len(frames), cells, cells, n, generator)
                     for n in (settings.grid, settings.cross_grid)]
            view2 = similarity.frames(frames)
            key = net(torch.cat([frames.flatten(0, 1), view2[:, 0]]).contiguous(), ("key",)).key
            count = frames.shape[0] * frames.shape[1]
            k = key[:count].unflatten(0, frames.shape[:2])  # [B, T, K, h, w]
            with torch.no_grad():
                rest = net(view2[:, 1:].flatten(0, 1).contiguous(), ("key",)).key
            k_view2 = torch.cat([key[count:, None], rest.unflatten(0, (len(frames), -1))], 1)
            plain_loss(k, k_view2, similarity.theta(), *grids).backward()
        optimiser.step()
        times.append(time.perf_counter() - started)
    return {"seconds": times[-1], "mb": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("davis", help="folder in DAVIS's layout")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--way", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(iteration(options.way, options.davis)))
        return
    times, peaks = {"ours": [], "plain": []}, {}
    for _ in range(options.runs):
        for name in times:
            outcome = own_process("training", options.davis, "--way", name)
            times[name].append(outcome["seconds"])
            peaks[name] = outcome["mb"]
    report("training iteration", "B=16, T=5, 256² crops, N=8, M=4", times, memory=peaks)


if __name__ == "__main__":
    main()
