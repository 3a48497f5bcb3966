"""The German catalogue."""

import gettext
import re
from ast import literal_eval
from pathlib import Path

import django_batches

FOLDER = Path(django_batches.__file__).parent / "locale" / "de" / "LC_MESSAGES"
PO = (FOLDER / "django.po").read_text()


def test_the_catalogue_has_no_missing_fuzzy_or_obsolete_entries():
    assert not re.search(r'^msgstr(\[\d\])? ""\n(?!")', PO, re.MULTILINE)
    assert not re.search(r"^#(, fuzzy|~)", PO, re.MULTILINE)


def test_the_compiled_catalogue_is_up_to_date():
    with (FOLDER / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    entries = re.findall(r'^(msgctxt .*\n)?msgid ((?:".*"\n)+)msgstr ((?:".*"\n)+)', PO, re.MULTILINE)
    assert len(entries) > 200
    for context, *texts in entries[1:]:
        text, translation = ("".join(map(literal_eval, quoted.splitlines())) for quoted in texts)
        found = compiled.pgettext(literal_eval(context[8:]), text) if context else compiled.gettext(text)
        assert found == translation
