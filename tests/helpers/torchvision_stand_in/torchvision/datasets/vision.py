from torchvision.datasets import VisionDataset as VisionDataset
