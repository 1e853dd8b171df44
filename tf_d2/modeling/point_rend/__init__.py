"""PointRend: masks refined where they are least sure. Source: projects/PointRend/point_rend."""
