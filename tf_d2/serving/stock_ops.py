"""Ops that an export may use: all are in stock TensorFlow Serving and have been since TensorFlow 2.19.

Checked by loading exports of every model family in the TensorFlow 2.19.1 and 2.20.0 wheels. An op that is not
here stops the export: add it only after checking that those versions register it with the attributes used.
"""

from __future__ import annotations

STOCK_OPS = frozenset(
    """
    Abs AddV2 All Any ArgMax Assert BatchMatMulV2 BiasAdd BitwiseAnd BitwiseOr BroadcastTo Cast Ceil
    ClipByValue ConcatV2 Const Conv2D Conv2DBackpropInput Cos Cumsum
    DecodeImage DecodeJpeg DecodeRaw DenseBincount DepthwiseConv2dNative DivNoNan EncodePng EnsureShape Equal
    Exp ExpandDims ExtractJpegShape Fill Floor FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual
    Identity IdentityN If IgnoreErrorsDataset InvertPermutation IsFinite IsNan LeftShift Less LessEqual Log
    LogicalAnd LogicalNot LogicalOr MapDataset MatMul Max MaxPool Maximum Mean MergeV2Checkpoints Min Minimum
    Mul Neg NoOp NonMaxSuppressionV3 NotEqual OnesLike OptionsDataset Pack Pad PadV2 PartitionedCall
    Placeholder PlaceholderWithDefault Pow Prod Range RealDiv Reciprocal ReduceDataset Relu Reshape
    ResizeBilinear RestoreV2 ReverseV2 RightShift Rsqrt SaveV2 ScatterNd SegmentMax Select SelectV2 Shape
    ShardedFilename Sigmoid Sign Sin Size Slice Softmax Split SplitV Sqrt Square SquaredDifference Squeeze
    StatefulPartitionedCall StatelessIf StatelessWhile StaticRegexFullMatch StopGradient StridedSlice
    StringJoin Sub Substr Sum TensorDataset TensorListConcatV2 TensorListFromTensor TensorListGetItem
    TensorListReserve TensorListSetItem TensorListStack TensorScatterUpdate Tile TopKV2 Transpose Unique
    UniqueWithCounts Unpack UnsortedSegmentMax UnsortedSegmentSum Where While ZerosLike
    """.split()
)
