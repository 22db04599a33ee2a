"""Hours in minutes: mixed load with faults injected, and whether memory, descriptors and tasks stay where they are."""
