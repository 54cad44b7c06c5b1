#!/usr/bin/python3
"""Every file under examples/ is what it says: accepted as it is, or, the one that shows it, refused by name."""

import unittest

import bookinfo
import mesh

REFUSED = {"authorization-unsupported.yaml": "spec.rules[0].to[0].operation.methods"}


class ExamplesTest(unittest.TestCase):
    def test_each_file_is_accepted_offline(self):
        files = sorted((bookinfo.ROOT / "examples").rglob("*.yaml"))
        self.assertTrue({file.name for file in files} > set(REFUSED))
        for file in files:
            if file.name not in REFUSED:
                with self.subTest(file=file.name):
                    mesh.meshctl("validate", "-f", file)

    def test_what_is_not_supported_is_refused_by_file_and_field(self):
        for name, field in REFUSED.items():
            with self.subTest(file=name):
                done = mesh.meshctl("validate", "-f", bookinfo.CONFIG / name, check=False)
                self.assertEqual(done.returncode, 1, done.stdout)
                self.assertIn(name, done.stdout + done.stderr)
                self.assertIn(field, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
