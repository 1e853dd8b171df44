"""DensePose: which point of a body's surface each pixel shows. Source: projects/DensePose/densepose/modeling."""
