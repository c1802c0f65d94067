"""How often machines fail, as published: single figures with their source, and the rates that follow.

Meta, "The Llama 3 Herd of Models" (2024), table 5: 54 days of pre-training on 16,384 H100, 419 unexpected
interruptions; of these 148 faulty GPUs (NVLink with them), 72 HBM3, 19 SRAM, 17 system processors of the GPU,
35 network switch or cable, 2 CPU, 3 by hand; the rest are software, hosts, storage, power and maintenance.
"""

ACCELERATORS, DAYS, UNEXPECTED, PLANNED = 16_384, 54, 419, 47
ACCELERATOR_FAULTS = 148 + 72 + 19 + 17
NETWORK_FAULTS = 35
HOST_FAULTS = UNEXPECTED - ACCELERATOR_FAULTS - NETWORK_FAULTS  # hosts, software, storage, power
ACCELERATOR_SECONDS = ACCELERATORS * DAYS * 86_400.0


def accelerator_mttf_s(accelerators: int = 1) -> float:
    """Mean time to a failure of one of so many accelerators, or of the host and software under them."""
    return ACCELERATOR_SECONDS / (ACCELERATOR_FAULTS + HOST_FAULTS) / accelerators


def network_mttf_s(accelerators: int = 1) -> float:
    """Mean time to a failure of a switch or cable that so many accelerators need."""
    return ACCELERATOR_SECONDS / NETWORK_FAULTS / accelerators
