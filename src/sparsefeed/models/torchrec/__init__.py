"""The trainer that runs everywhere: TorchRec on gloo or NCCL."""
