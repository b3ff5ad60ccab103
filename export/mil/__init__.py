"""Reads a saved Core ML package and evaluates its ML Program operation by operation, on any system.

Core ML itself runs on macOS and iOS only. This package parses the saved protobuf and weight blob on its own, without
the converter's classes and without its constant folding, and computes each operation as the MIL documentation
defines it, rounding every result to the type that the program declares for it. So the numbers of an ``.mlpackage``
can be checked where it was converted.

What it is not: the arithmetic of a certain Apple chip. An operation is computed in FP32 and rounded once at its end;
a Neural Engine may keep other intermediates inside of an operation. It says nothing about speed.

Source: the MIL reference of coremltools (``coremltools.converters.mil.mil.ops.defs``), ``MIL.proto``.
"""
